"""How every scenario is done: what injects its cost, and what the ledger is held against.

In every run the target client carries a constant known cost in training that makes it
critical; the other clients train beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ztprobe.errors import WorkloadError
from ztprobe.profile import Profile
from ztprobe.validate import truth
from ztprobe.validate.compare import (
    Evidence,
    Measure,
    from_capture,
    injected_part,
    noted_part,
    slack,
    sub_row,
)
from ztprobe.validate.model import Bound
from ztprobe.validate.packets import DROPPED, Blocker, PacketHolder
from ztprobe.validate.processes import Competitor, SidecarStop
from ztprobe.validate.profiles import ProfileSteps
from ztprobe.validate.scene import Injector

__all__ = (
    "TARGET",
    "Claim",
    "Plan",
    "busy",
    "cpu",
    "dns",
    "dns_blocked",
    "loss",
    "not_critical",
    "port_blocked",
    "propagation",
    "proxy",
    "rate",
    "retransmission",
    "server",
    "server_hello",
    "sleep",
    "syn_ack",
    "syn_drop",
    "two_at_once",
)

TARGET, OTHER = "fl-client-1", "fl-client-0"
_HEAD_START_MS = 400.0
_PORT = truth.SERVER_PORT


class Claim(NamedTuple):
    """What one place of the ledger is held against."""

    where: str
    bound: Bound
    measure: Measure


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a scenario's run looks: built from the sizes, one per round."""

    claims: tuple[Claim, ...]
    injectors: tuple[Injector, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    profile: Profile | None = None


def _per_round(values: Mapping[int, float], constant_ms: float = 0.0) -> str:
    last = max(values, default=0)
    return ",".join(f"{values.get(k, 0.0) + constant_ms:g}" for k in range(1, last + 60))


def _critical() -> dict[str, str]:
    return {"FL_INJECT_COMPUTE_SLEEP_MS": f"{TARGET}={_per_round({}, _HEAD_START_MS)}"}


# server and compute


def _server_whole_ns(evidence: Evidence, number: int) -> int:
    """To the model's first byte on the wire, and from the update's last one to the round's end."""
    start_ns, end_ns = evidence.span(number)
    model, update = _both_ways(evidence, number)
    arrived = update.transmission
    if not model.sent or arrived is None:
        raise WorkloadError(f"round {number}: the capture misses the model or the update")
    return model.sent[0].ts_ns - start_ns + end_ns - arrived[1]


def _compute_whole_ns(evidence: Evidence, number: int) -> int:
    """From the model's last byte to the update's first, where the application is: beside its sidecar."""
    received, written = evidence.at_application(number, evidence.target)
    if received.transmission is None or not written.sent:
        raise WorkloadError(f"round {number}: the capture misses the model or the update")
    return written.sent[0].ts_ns - received.transmission[1]


_WORK_BOUND = Bound(absolute_ms=2, relative=0.02)
_SERVER = Claim(
    "server", _WORK_BOUND, injected_part("server", "aggregation", _server_whole_ns, pod="fl-server")
)


def _compute(kind: str, where: str = "compute") -> Claim:
    return Claim(where, _WORK_BOUND, injected_part("compute", kind, _compute_whole_ns))


def server(sizes: Mapping[int, float]) -> Plan:
    return Plan(claims=(_SERVER,), environment=_critical() | {"FL_INJECT_AGGREGATION_MS": _per_round(sizes)})


def sleep(sizes: Mapping[int, float]) -> Plan:
    return Plan(
        claims=(_compute("sleep"),),
        environment={
            "FL_INJECT_COMPUTE_BUSY_MS": f"{TARGET}={_per_round({}, _HEAD_START_MS)}",
            "FL_INJECT_COMPUTE_SLEEP_MS": f"{TARGET}={_per_round(sizes)}",
        },
    )


def busy(sizes: Mapping[int, float]) -> Plan:
    return Plan(
        claims=(_compute("busy"),),
        environment=_critical() | {"FL_INJECT_COMPUTE_BUSY_MS": f"{TARGET}={_per_round(sizes)}"},
    )


# proxy


def _in_sidecar(evidence: Evidence, number: int) -> truth.Interval | None:
    """The update's first byte, from loopback to the wire."""
    _, written = evidence.at_application(number, evidence.target)
    wire = evidence.link(number, evidence.target, down=False)
    return (written.sent[0].ts_ns, wire.sent[0].ts_ns) if written.sent and wire.sent else None


def proxy(sizes: Mapping[int, float]) -> Plan:
    bound = Bound(absolute_ms=0.2, relative=0.05)
    return Plan(
        claims=(Claim("proxy", bound, noted_part("proxy", "stop", _in_sidecar)),),
        injectors=(SidecarStop(TARGET, sizes),),
        environment=_critical(),
    )


# connection set-up

_SET_UP_BOUND = Bound(absolute_ms=1, relative=0.02)
_DNS_BOUND = Bound(absolute_ms=2, relative=0.05)
_TCP = Claim(
    "tcp_handshake",
    _SET_UP_BOUND,
    from_capture("tcp_handshake", lambda e, k: truth.handshakes(e.seen(e.target, k))),
)
_TLS = Claim(
    "tls_handshake",
    _SET_UP_BOUND,
    from_capture("tls_handshake", lambda e, k: truth.tls_handshakes(e.seen(e.target, k))),
)
_DNS = Claim("dns", _DNS_BOUND, from_capture("dns", lambda e, k: truth.dns_waits(e.seen(e.target, k))))
_SYN_ACK = f"-d {{}} -p tcp --sport {_PORT} --tcp-flags SYN,ACK SYN,ACK"
_SYN = f"-s {{}} -p tcp --dport {_PORT} --tcp-flags SYN,ACK SYN"
# Behind the IP and TCP headers: a TLS record of type handshake whose message is ServerHello.
_PAYLOAD = "0>>22&0x3C@12>>26&0x3C@"
_SERVER_HELLO = (
    f'-d {{}} -p tcp --sport {_PORT} -m u32 --u32 "{_PAYLOAD}0>>8=0x160303&&{_PAYLOAD}4>>16&0xFF=0x02"'
)
_DNS_ANSWER = "-d {} -p udp --sport 53"


def _hold(kind: str, match: str, sizes: Mapping[int, float], claim: Claim) -> Plan:
    def decide(_pod: str, number: int, _nth: int) -> float:
        return sizes.get(number, 0.0)

    return Plan(
        claims=(claim,),
        injectors=(PacketHolder(kind, {TARGET: match}, decide),),
        environment=_critical(),
    )


def syn_ack(sizes: Mapping[int, float]) -> Plan:
    return _hold("syn-ack", _SYN_ACK, sizes, _TCP)


def server_hello(sizes: Mapping[int, float]) -> Plan:
    return _hold("server-hello", _SERVER_HELLO, sizes, _TLS)


def dns(sizes: Mapping[int, float]) -> Plan:
    return _hold("dns-answer", _DNS_ANSWER, sizes, _DNS)


def syn_drop(sizes: Mapping[int, float]) -> Plan:
    def decide(_pod: str, number: int, nth: int) -> float:
        return DROPPED if nth < sizes.get(number, 0) else 0.0

    return Plan(
        claims=(_TCP,), injectors=(PacketHolder("syn", {TARGET: _SYN}, decide),), environment=_critical()
    )


# the wire


def _both_ways(evidence: Evidence, number: int) -> list[truth.Link]:
    client = evidence.rounds[number].critical_client or evidence.target
    return [evidence.link(number, client, down=down) for down in (True, False)]


def _steps(sizes: Mapping[int, float], make: Callable[[float], Profile], *claims: Claim) -> Plan:
    profiles = {number: make(size) for number, size in sizes.items()}
    first = next(iter(profiles.values()))
    return Plan(
        claims=claims,
        injectors=(ProfileSteps({1: first, **profiles}),),
        # The profile changes while the server aggregates.
        environment=_critical() | {"FL_INJECT_AGGREGATION_MS": _per_round({}, 700.0)},
    )


def _delays(evidence: Evidence, number: int) -> list[truth.Interval]:
    return [link.first_delay for link in _both_ways(evidence, number) if link.first_delay is not None]


def _transmissions(evidence: Evidence, number: int) -> list[truth.Interval]:
    return [link.transmission for link in _both_ways(evidence, number) if link.transmission is not None]


def _missing(evidence: Evidence, number: int) -> list[truth.Interval]:
    return [hole for link in _both_ways(evidence, number) for hole in truth.holes(link)]


def propagation(sizes: Mapping[int, float]) -> Plan:
    def clocked_ns(evidence: Evidence, number: int) -> int:
        return sum(link.ack_clocked_ns for link in _both_ways(evidence, number))

    return _steps(
        sizes,
        lambda ms: Profile(name=f"delay-{ms:g}ms", delay_ms=ms),
        Claim("propagation", Bound(relative=0.02), from_capture("propagation", _delays, anyone=True)),
        Claim(
            "transmission", Bound(relative=0.05), from_capture("transmission", _transmissions, anyone=True)
        ),
        Claim(
            "congestion window",
            Bound(relative=0.05),
            sub_row("transmission", "congestion_window", clocked_ns, anyone=True),
        ),
    )


def rate(sizes: Mapping[int, float]) -> Plan:
    claim = Claim(
        "transmission", Bound(relative=0.05), from_capture("transmission", _transmissions, anyone=True)
    )
    return _steps(sizes, lambda mbit: Profile(name=f"rate-{mbit:g}mbit", rate_mbit=mbit), claim)


def retransmission(sizes: Mapping[int, float]) -> Plan:
    def decide(_pod: str, number: int, nth: int) -> float:
        return DROPPED if nth < sizes.get(number, 0) else 0.0

    # One in 700 of the update's full segments comes to the holder, which drops the first few of a round.
    match = (
        f"-s {{}} -p tcp --dport {_PORT} -m length --length 1000:65535"
        " -m statistic --mode nth --every 700 --packet 350"
    )
    # An RTO granule is a tick of the kernel's timer.
    claim = Claim(
        "retransmission", Bound(absolute_ms=4, relative=0.05), from_capture("retransmission", _missing)
    )
    return Plan(
        claims=(claim,),
        injectors=(PacketHolder("segment", {TARGET: match}, decide),),
        environment=_critical(),
        profile=Profile(name="delay-20ms", delay_ms=20.0),
    )


def loss(sizes: Mapping[int, float]) -> Plan:
    (percent,) = set(sizes.values())
    claim = Claim(
        "retransmission",
        Bound(absolute_ms=4, relative=0.05),
        from_capture("retransmission", _missing, anyone=True),
    )
    return Plan(
        claims=(claim,),
        environment=_critical(),
        profile=Profile(name=f"loss-{percent:g}pct", delay_ms=20.0, loss_pct=percent),
    )


# policy


_POLICY_BOUND = Bound(relative=0.05)


def port_blocked(sizes: Mapping[int, float]) -> Plan:
    def blocks(evidence: Evidence, number: int) -> list[truth.Interval]:
        return truth.policy_blocks(evidence.seen(evidence.target, number), evidence.seen("fl-server", number))

    return Plan(
        claims=(Claim("policy_drop", _POLICY_BOUND, from_capture("policy_drop", blocks)),),
        injectors=(Blocker(TARGET, f"tcp dport {_PORT}", "tcp flags & (syn | ack) == syn", sizes),),
        environment=_critical(),
        profile=Profile(name="delay-20ms", delay_ms=20.0),
    )


def dns_blocked(sizes: Mapping[int, float]) -> Plan:
    def blocks(evidence: Evidence, number: int) -> list[truth.Interval]:
        return truth.dns_blocks(evidence.seen(evidence.target, number))

    return Plan(
        claims=(Claim("policy_drop", _POLICY_BOUND, from_capture("policy_drop", blocks)),),
        injectors=(Blocker(TARGET, "udp dport 53", "", sizes),),
        environment=_critical(),
    )


# CPU


def cpu(sizes: Mapping[int, float]) -> Plan:
    def waited_ns(evidence: Evidence, number: int) -> int:
        begun, ended = evidence.logged(evidence.target, number, "cpu_wait")
        return int(ended["cpu_wait_ns"] - begun["cpu_wait_ns"])

    claim = Claim("CPU waiting", Bound(relative=0.05), sub_row("compute", "cpu_wait", waited_ns))
    return Plan(
        claims=(claim,),
        injectors=(Competitor(TARGET, "client", {k: int(n) for k, n in sizes.items()}),),
        environment=_critical() | {"FL_LOG_CPU_WAIT": "1"},
    )


# who is not critical, and two at once


def not_critical(sizes: Mapping[int, float]) -> Plan:
    sleeps = f"{TARGET}={_per_round({}, 900.0)};{OTHER}={_per_round(sizes)}"
    return Plan(
        claims=(Claim("slack", Bound(absolute_ms=2), slack(OTHER)), _compute("sleep", "critical: compute")),
        environment={"FL_INJECT_COMPUTE_SLEEP_MS": sleeps},
    )


def two_at_once(sizes: Mapping[int, float]) -> Plan:
    held = _hold("syn-ack", _SYN_ACK, sizes, _TCP)
    # The other cost runs the other way, so that neither can be told from the other's size.
    sleeps = {k: max(sizes.values()) + min(sizes.values()) - ms for k, ms in sizes.items()}
    return Plan(
        claims=(_TCP, _SERVER),
        injectors=held.injectors,
        environment=_critical() | {"FL_INJECT_AGGREGATION_MS": _per_round(sleeps)},
    )
