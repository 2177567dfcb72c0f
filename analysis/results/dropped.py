"""The packets that a run's kernels dropped: pods by name, each with the policy that explains it.

The kernel's reason says that a packet filter dropped a packet, and never for which rule. What explains
it is the verdict of `ztprobe.policy` on the packet's own addresses and port, by the objects that were in
force. Only a packet that opens something (a TCP SYN, a datagram) and that a packet filter dropped is
explained like that: no other reason is a policy's, and where no policy selects either end none is named.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.evidence.values import ACK, FIN, RST, SYN
from analysis.recorded import changed_objects, recorded_objects
from ztprobe.errors import UsageError
from ztprobe.policy.explanation import Explainer, Explanation
from ztprobe.policy.model import Objects
from ztprobe.rundir.clock import Clock
from ztprobe.rundir.store import Run

__all__ = (
    "BURST_GAP_NS",
    "BY_FILTER",
    "DropBurst",
    "DroppedPacket",
    "ExplainerOverTime",
    "dropped_packets",
    "in_bursts",
    "matching",
)

BURST_GAP_NS = 1_000_000_000  # packets alike that follow each other closer than this are one burst
BY_FILTER = frozenset({"NETFILTER_DROP"})
# Of these reasons are the segments that sockets have no more use for, mostly once a connection ends.
_BY_SOCKET = frozenset({"QUEUE_PURGE", "NOT_SPECIFIED", "NO_SOCKET"})
_FLAGS = ((SYN, "S"), (FIN, "F"), (RST, "R"), (8, "P"), (ACK, "."))  # as tcpdump writes them
_POLICED = ("tcp", "udp", "sctp")


@dataclass(frozen=True, kw_only=True)
class DroppedPacket:
    """One packet; ends are pods' names, or addresses."""

    ts_ns: int
    time_unix_ns: int
    round: int  # 0: before round 1
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
    bare: bool  # a TCP segment that opens nothing and carries nothing, which a socket threw away
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


def dropped_packets(run: Run, objects: Objects | None = None) -> list[DroppedPacket]:
    """A run's drops by time.

    :param objects: the policies that explain (default: those that the run recorded); the run's pods
        are added.
    :raises ztprobe.errors.RunDirError: the objects that the run recorded are damaged.
    """
    explainer = _Explainer(run, objects)
    clock = Clock.of_run(run.meta)
    names = {pod["address"]: pod["name"] for pod in run.meta["pods"]}
    starts = [event["time_monotonic_ns"] for event in run.rounds if event["event"] == "round_start"]
    found = []
    rows: Iterable[Any] = run.events["drops"].itertuples(index=False)
    for row in rows:
        by_filter = row.reason in BY_FILTER
        opens = row.protocol != "tcp" or row.tcp_flags & (SYN | ACK | RST) == SYN
        verdict, policies, explanation = explainer.why(row, opens) if by_filter else ("", (), ())
        bare = row.protocol == "tcp" and not row.payload_bytes and not row.tcp_flags & SYN
        found.append(
            DroppedPacket(
                ts_ns=row.ts_ns,
                time_unix_ns=clock.unix_ns(row.ts_ns),
                round=bisect_right(starts, row.ts_ns),
                pod=row.pod,
                direction=row.direction,
                source=names.get(row.source, row.source),
                target=names.get(row.target, row.target),
                protocol=row.protocol,
                source_port=row.source_port,
                target_port=row.target_port,
                tcp_flags="".join(letter for bit, letter in _FLAGS if row.tcp_flags & bit),
                payload_bytes=row.payload_bytes,
                reason=row.reason,
                location=row.location,
                head=row.head,
                bare=bare and row.reason in _BY_SOCKET,
                verdict=verdict,
                policies=policies,
                explanation=explanation,
            )
        )
    return sorted(found, key=lambda one: one.ts_ns)


def in_bursts(packets: Iterable[DroppedPacket]) -> list[DropBurst]:
    """Packets alike that follow each other within `BURST_GAP_NS`, by the time of the first."""
    running: dict[tuple[Any, ...], DropBurst] = {}
    found = []
    for packet in packets:
        ends = (packet.source, packet.target, packet.protocol, packet.target_port, "S" in packet.tcp_flags)
        place = (packet.pod, packet.direction, packet.location, packet.round)
        kind = (ends, place, packet.reason, packet.explanation, packet.bare)
        burst = running.get(kind)
        if burst is None or packet.ts_ns - burst.last_ns > BURST_GAP_NS:
            burst = running[kind] = DropBurst(first=packet, last_ns=packet.ts_ns, packets=0)
            found.append(burst)
        burst.last_ns = packet.ts_ns
        burst.packets += 1
        burst.payload_bytes += packet.payload_bytes
    return found


# Verdict, the policies that deny, and the words for it.
_Why = tuple[str, tuple[str, ...], tuple[str, ...]]


class ExplainerOverTime:
    """The policies that were in force at a moment of the run.

    :param objects: in place of all that the run recorded.
    """

    def __init__(self, run: Run, objects: Objects | None) -> None:
        first = recorded_objects(run, objects)
        later = changed_objects(run) if objects is None else []
        self._from_ns = [at_ns for at_ns, _ in later]
        self._explainers = [None if first is None else Explainer(first)]
        self._explainers += [Explainer(changed) for _, changed in later]

    def at(self, ts_ns: int) -> Explainer | None:
        """None: the run holds no policies."""
        return self._explainers[bisect_right(self._from_ns, ts_ns)]


class _Explainer:
    # Verdicts on packets, each connection's asked for once.
    def __init__(self, run: Run, objects: Objects | None) -> None:
        self._over_time = ExplainerOverTime(run, objects)
        self._known: dict[tuple[int, str, str, str, int], _Why] = {}

    def why(self, row: Any, opens: bool) -> _Why:
        explainer = self._over_time.at(row.ts_ns)
        if explainer is None:
            return "", (), ("by a packet filter; the run holds no policies (-f gives them)",)
        if not opens or row.protocol not in _POLICED:
            return "", (), ("by a packet filter; no new connection, which is what policies are about",)
        asked = (row.source, row.target, row.protocol.upper(), row.target_port)
        key = (id(explainer), *asked)
        if key not in self._known:
            self._known[key] = self._explain(explainer, *asked)
        return self._known[key]

    def _explain(self, explainer: Explainer, source: str, target: str, protocol: str, port: int) -> _Why:
        try:
            ends = [str(ipaddress.ip_address(end)) for end in (source, target)]
            found = explainer.explain(ends[0], ends[1], protocol, port)
        except (ValueError, UsageError):  # its head was cut short, or two pods have one address
            return "undecidable", (), ("by a packet filter; whose packet it was is not certain",)
        return found.verdict, _deniers(found), _words(found)


def _deniers(found: Explanation) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for side in found.sides:
        if side.verdict == "denied":
            names |= dict.fromkeys((*(rule.policy for rule in side.denied_by), *side.isolated_by))
    return tuple(names)


def _words(found: Explanation) -> tuple[str, ...]:
    if found.verdict == "denied":
        return tuple(f"{side.direction} {side.reason}" for side in found.sides if side.verdict == "denied")
    if found.verdict == "undecidable":
        return (f"by a packet filter; not known whether a policy denies it: {'; '.join(found.missing)}",)
    if found.verdict == "allowed":
        return ("by a packet filter, and no policy's: the policies allow it",)
    return ("by a packet filter, and no policy's: none selects either end",)


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
