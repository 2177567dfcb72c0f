"""The packets that a run's kernels dropped: pods by name, each with the policy that explains it.

What explains a packet is `analysis.results.drop_explanations`'s business.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.evidence.values import ACK, FIN, RST, SYN
from analysis.recorded import changed_objects, recorded_objects
from analysis.results.drop_explanations import DropExplainer, noise_of
from ztprobe.policy.explanation import Explainer
from ztprobe.policy.model import Objects
from ztprobe.rundir.clock import Clock
from ztprobe.rundir.store import Run

__all__ = (
    "BURST_GAP_NS",
    "DropBurst",
    "DroppedPacket",
    "ExplainerOverTime",
    "dropped_packets",
    "flag_letters",
    "in_bursts",
    "matching",
)

BURST_GAP_NS = 1_000_000_000  # packets alike that follow each other closer than this are one burst
_FLAGS = ((SYN, "S"), (FIN, "F"), (RST, "R"), (8, "P"), (ACK, "."))  # as tcpdump writes them


@dataclass(frozen=True, kw_only=True)
class DroppedPacket:
    """One packet; ends are pods' names, or addresses."""

    ts_ns: int
    time_unix_ns: int
    round: (
        int | None
    )  # 0: before round 1; None: after the last one, or not known (of drops that are followed)
    pod: str  # where it was dropped: a pod, or node
    direction: str
    source: str
    target: str
    protocol: str
    source_port: int
    target_port: int
    tcp_flags: str  # as tcpdump writes them
    payload_bytes: int
    reason: str
    location: str  # the kernel's function; empty: unknown
    head: bytes
    noise: str  # what part of normal work it is (`analysis.results.drop_explanations.NOISE`); empty: none
    verdict: str  # denied | allowed | ... of the policies in force; empty: no policy is asked
    policies: tuple[str, ...]  # that deny it
    explanation: tuple[str, ...]  # one sentence for each side that denies, or one


@dataclass(kw_only=True)
class DropBurst:
    """Packets alike: same ends, protocol, port, reason, place and explanation; flags are the first one's."""

    first: DroppedPacket
    last_ns: int
    packets: int = 1
    payload_bytes: int = 0
    run: str = ""  # of drops that are followed
    is_rest: bool = False  # more of what was told before (of drops that are followed)


def dropped_packets(run: Run, objects: Objects | None = None) -> list[DroppedPacket]:
    """A run's drops by time.

    :param objects: the policies that explain (default: those that the run recorded); the run's pods
        are added.
    :raises ztprobe.errors.RunDirError: the objects that the run recorded are damaged.
    """
    policies = ExplainerOverTime(run, objects)
    clock = Clock.of_run(run.meta)
    names = {pod["address"]: pod["name"] for pod in run.meta["pods"]}
    rounds = _Rounds(run)
    datagrams = _Datagrams(run)
    found = []
    rows: Iterable[Any] = run.events["drops"].itertuples(index=False)
    for row in rows:
        verdict, denied_by, explanation = policies.of_drops(row.ts_ns).why(
            source=row.source,
            target=row.target,
            protocol=row.protocol,
            target_port=row.target_port,
            tcp_flags=row.tcp_flags,
            reason=row.reason,
            answers=row.protocol != "tcp" and not datagrams.opens(row),
        )
        noise = noise_of(
            protocol=row.protocol,
            target=row.target,
            tcp_flags=row.tcp_flags,
            payload_bytes=row.payload_bytes,
            reason=row.reason,
        )
        found.append(
            DroppedPacket(
                ts_ns=row.ts_ns,
                time_unix_ns=clock.unix_ns(row.ts_ns),
                round=rounds.at(row.ts_ns),
                pod=row.pod,
                direction=row.direction,
                source=names.get(row.source, row.source),
                target=names.get(row.target, row.target),
                protocol=row.protocol,
                source_port=row.source_port,
                target_port=row.target_port,
                tcp_flags=flag_letters(row.tcp_flags),
                payload_bytes=row.payload_bytes,
                reason=row.reason,
                location=row.location,
                head=row.head,
                noise=noise,
                verdict=verdict,
                policies=denied_by,
                explanation=explanation,
            )
        )
    return sorted(found, key=lambda one: one.ts_ns)


class _Rounds:
    # Which round an instant is in; what lies between two belongs to the one before.
    def __init__(self, run: Run) -> None:
        times = {
            name: sorted(event["time_monotonic_ns"] for event in run.rounds if event["event"] == name)
            for name in ("round_start", "round_end")
        }
        self._starts_ns, ends_ns = times["round_start"], times["round_end"]
        # The last may not have come to its end.
        self._over_ns = ends_ns[-1] if len(ends_ns) == len(self._starts_ns) > 0 else None

    def at(self, ts_ns: int) -> int | None:
        if self._over_ns is not None and ts_ns > self._over_ns:
            return None
        return bisect_right(self._starts_ns, ts_ns)


class _Datagrams:
    # Who spoke first of two ends: what goes the other way answers. Seen are questions to the name service and
    # their answers, and what was dropped.
    def __init__(self, run: Run) -> None:
        self._first_ns: dict[tuple[str, str, int, str, int], int] = {}
        rows: Iterable[Any] = run.events["dns"].itertuples(index=False)
        for row in rows:
            ends = ((row.local, row.local_port), (row.remote, row.remote_port))
            source, target = ends if row.direction == "tx" else ends[::-1]
            self._see(("udp", *source, *target), row.ts_ns)
        dropped: Iterable[Any] = run.events["drops"].itertuples(index=False)
        for row in dropped:
            if row.protocol != "tcp":
                self._see((row.protocol, row.source, row.source_port, row.target, row.target_port), row.ts_ns)

    def _see(self, way: tuple[str, str, int, str, int], ts_ns: int) -> None:
        self._first_ns[way] = min(ts_ns, self._first_ns.get(way, ts_ns))

    def opens(self, row: Any) -> bool:
        way = (row.protocol, row.source, row.source_port, row.target, row.target_port)
        back = (row.protocol, row.target, row.target_port, row.source, row.source_port)
        return bool(self._first_ns[way] <= self._first_ns.get(back, row.ts_ns))


def flag_letters(tcp_flags: int) -> str:
    """Flags of a TCP header as tcpdump writes them."""
    return "".join(letter for bit, letter in _FLAGS if tcp_flags & bit)


def in_bursts(packets: Iterable[DroppedPacket]) -> list[DropBurst]:
    """Packets alike that follow each other within `BURST_GAP_NS`, by the time of the first."""
    running: dict[tuple[Any, ...], DropBurst] = {}
    found = []
    for packet in packets:
        ends = (packet.source, packet.target, packet.protocol, packet.target_port, "S" in packet.tcp_flags)
        place = (packet.pod, packet.direction, packet.location, packet.round)
        kind = (ends, place, packet.reason, packet.explanation, packet.noise)
        burst = running.get(kind)
        if burst is None or packet.ts_ns - burst.last_ns > BURST_GAP_NS:
            burst = running[kind] = DropBurst(first=packet, last_ns=packet.ts_ns, packets=0)
            found.append(burst)
        burst.last_ns = packet.ts_ns
        burst.packets += 1
        burst.payload_bytes += packet.payload_bytes
    return found


class ExplainerOverTime:
    """The policies that were in force at a moment of the run.

    :param objects: in place of all that the run recorded.
    """

    def __init__(self, run: Run, objects: Objects | None) -> None:
        later = changed_objects(run) if objects is None else []
        self._from_ns = [at_ns for at_ns, _ in later]
        in_force = [recorded_objects(run, objects), *(changed for _, changed in later)]
        self._explainers = [None if one is None else Explainer(one) for one in in_force]
        self._drops = [
            DropExplainer(one, unknown="by a packet filter; the run holds no policies (-f gives them)")
            for one in in_force
        ]

    def at(self, ts_ns: int) -> Explainer | None:
        """None: the run holds no policies."""
        return self._explainers[bisect_right(self._from_ns, ts_ns)]

    def of_drops(self, ts_ns: int) -> DropExplainer:
        """Whom to ask about a packet that was dropped then."""
        return self._drops[bisect_right(self._from_ns, ts_ns)]


def matching(
    packets: Sequence[DroppedPacket], *, pods: Sequence[str] = (), reasons: Sequence[str] = ()
) -> list[DroppedPacket]:
    """Those from, to or in one of the pods, and of one of the reasons; empty: all."""
    return [
        one
        for one in packets
        if (not pods or not {one.pod, one.source, one.target}.isdisjoint(pods))
        and (not reasons or one.reason in reasons)
    ]
