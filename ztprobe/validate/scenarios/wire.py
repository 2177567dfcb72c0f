"""Costs of the wire: delay, rate, loss, windows, and a policy that blocks a live connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from analysis.intervals import total_ns
from ztprobe.profile.model import Profile
from ztprobe.validate.comparison import RunEvidence, from_capture, sub_row
from ztprobe.validate.inject.packets import DROPPED, Blocker, PacketHolder
from ztprobe.validate.inject.profile_changes import ProfileSteps
from ztprobe.validate.inject.stops import ProcessStop, ReceiveBuffer, StopMoment
from ztprobe.validate.model import Bound
from ztprobe.validate.observe import truth
from ztprobe.validate.scenarios.plan import (
    PORT,
    SERVER,
    TARGET,
    Claim,
    Plan,
    both_ways,
    critical,
    per_round,
)
from ztprobe.validate.scenarios.setup import POLICY_BOUND

__all__ = (
    "blocked_live",
    "delay",
    "loss",
    "propagation",
    "rate",
    "receive_window",
    "retransmission",
    "small_messages",
    "steps",
)


def steps(
    sizes: Mapping[int, float], make: Callable[[float], Profile], *claims: Claim, **environment: str
) -> Plan:
    """Another profile for every round, made from its size; ``environment`` is the workload's."""
    profiles = {number: make(size) for number, size in sizes.items()}
    first = next(iter(profiles.values()))
    return Plan(
        claims=claims,
        injectors=(ProfileSteps({1: first, **profiles}),),
        # The profile changes while the server aggregates.
        environment=critical() | {"FL_INJECT_AGGREGATION_MS": per_round({}, 700.0)} | environment,
    )


def _delays(evidence: RunEvidence, number: int) -> list[truth.Interval]:
    return [link.first_delay for link in both_ways(evidence, number) if link.first_delay is not None]


def _transmissions(evidence: RunEvidence, number: int) -> list[truth.Interval]:
    return [link.transmission for link in both_ways(evidence, number) if link.transmission is not None]


def _missing(evidence: RunEvidence, number: int) -> list[truth.Interval]:
    return [hole for link in both_ways(evidence, number) for hole in truth.holes(link)]


def delay(ms: float) -> Profile:
    """A constant one-way delay."""
    return Profile(name=f"delay-{ms:g}ms", delay_ms=ms)


_PROPAGATION = Claim("propagation", Bound(relative=0.02), from_capture("propagation", _delays, anyone=True))
_TRANSMISSION = Claim(
    "transmission", Bound(relative=0.05), from_capture("transmission", _transmissions, anyone=True)
)


def propagation(sizes: Mapping[int, float]) -> Plan:
    """Messages of many windows: what is left is the congestion window's."""

    def clocked_ns(evidence: RunEvidence, number: int) -> int:
        return sum(total_ns(link.ack_clocked) for link in both_ways(evidence, number))

    cwnd = Claim(
        "congestion window",
        Bound(relative=0.05),
        sub_row("transmission", "congestion_window", clocked_ns, anyone=True, within=_transmissions),
    )
    return steps(sizes, delay, _PROPAGATION, _TRANSMISSION, cwnd)


def small_messages(sizes: Mapping[int, float]) -> Plan:
    """Messages of 13.7 kB, which the initial window of ten segments holds."""
    return steps(sizes, delay, _PROPAGATION, FL_MODEL="narrow")


def rate(sizes: Mapping[int, float]) -> Plan:
    """Another rate for every round."""
    return steps(sizes, lambda mbit: Profile(name=f"rate-{mbit:g}mbit", rate_mbit=mbit), _TRANSMISSION)


def retransmission(sizes: Mapping[int, float]) -> Plan:
    """Full segments of the update dropped, each once."""

    def decide(_pod: str, number: int, nth: int) -> float:
        return DROPPED if nth < sizes.get(number, 0) else 0.0

    # One in 700 of the update's full segments comes to the holder, which drops the first few of a round.
    match = (
        f"-s {{}} -p tcp --dport {PORT} -m length --length 1000:65535"
        " -m statistic --mode nth --every 700 --packet 350"
    )
    # An RTO granule is a tick of the kernel's timer.
    claim = Claim(
        "retransmission", Bound(absolute_ms=4, relative=0.05), from_capture("retransmission", _missing)
    )
    return Plan(
        claims=(claim,),
        injectors=(PacketHolder("segment", {TARGET: match}, decide),),
        environment=critical(),
        profile=Profile(name="delay-20ms", delay_ms=20.0),
    )


def loss(sizes: Mapping[int, float]) -> Plan:
    """Packets lost at random, in both directions."""
    (percent,) = set(sizes.values())
    claim = Claim(
        "retransmission",
        Bound(absolute_ms=4, relative=0.05),
        from_capture("retransmission", _missing, anyone=True),
    )
    return Plan(
        claims=(claim,),
        environment=critical(),
        profile=Profile(name=f"loss-{percent:g}pct", delay_ms=20.0, loss_pct=percent),
    )


# the other side's windows


def receive_window(sizes: Mapping[int, float]) -> Plan:
    """The server stops reading in the middle of an update, and its small receive buffer fills up."""

    def closed(evidence: RunEvidence, number: int) -> list[truth.Interval]:
        return [pause for link in both_ways(evidence, number) for pause in link.closed_windows]

    def closed_ns(evidence: RunEvidence, number: int) -> int:
        return total_ns(closed(evidence, number))

    moment = StopMoment(pod=SERVER, peer=TARGET, bytes_before=300_000)
    claim = Claim(
        "receive window",
        Bound(relative=0.05),
        sub_row("transmission", "receive_or_http2_window", closed_ns, within=closed),
    )
    return Plan(
        claims=(claim,),
        injectors=(
            ReceiveBuffer(SERVER, 2 << 20),
            ProcessStop(SERVER, "server", moment, sizes, announced=(TARGET, "train_start")),
        ),
        environment=critical(),
        profile=delay(10.0),
    )


# a policy, mid-message


def blocked_live(sizes: Mapping[int, float]) -> Plan:
    """Data of a live connection blocked from the middle of an update on, then let through."""

    def blocks(evidence: RunEvidence, number: int) -> list[truth.Interval]:
        return truth.data_blocks(evidence.link(number, evidence.target, down=False))

    return Plan(
        claims=(Claim("policy_drop", POLICY_BOUND, from_capture("policy_drop", blocks)),),
        injectors=(Blocker(TARGET, f"tcp dport {PORT}", "quota over 400 kbytes", sizes, all_of_it=False),),
        environment=critical(),
        profile=delay(20.0),
    )
