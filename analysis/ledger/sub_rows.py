"""What a component of a round consists of: who held the server back, whose threads waited, what slowed bytes.

Sub-rows come from other evidence than the components do (the server's own log, the scheduler's
account, the sender's socket), so that they need not add up to their component. What could be more
than it, the senders' account of a transmission, is cut to the time that it really took.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from analysis.evidence.values import Burst
from analysis.intervals import Interval, Segment, overlap_ns, total_ns
from analysis.ledger.levels import LevelWay
from analysis.ledger.timeline import HopMessage

__all__ = ("sub_rows_of",)


def sub_rows_of(
    waits: Mapping[str, Sequence[Sequence[Interval]]],
    critical: LevelWay,
    ways: Sequence[LevelWay],
    pieces: Sequence[Segment],
    *,
    marks: Mapping[str, int],
) -> dict[str, dict[str, int]]:
    """Component -> sub-row -> nanoseconds of one round.

    :param waits: "pod/container" -> of each thread, when it waited for a CPU.
    :param critical: the round's path.
    :param ways: every client's.
    :param pieces: the round as it was painted with the critical one.
    :param marks: the server's events of this round, in CLOCK_MONOTONIC nanoseconds; sub-rows between
        events that it did not log are left out.
    """

    def of(component: str) -> list[Interval]:
        return [(p.start_ns, p.end_ns) for p in pieces if p.component == component]

    rows: dict[str, dict[str, int]] = {"server": {}, "compute": {}, "proxy": {}, "transmission": {}}
    rows["server"] |= _sending_rows(critical, ways)
    for name, begin, end in (
        ("aggregation", "wait_end", "aggregate_end"),
        ("evaluation", "aggregate_end", "evaluate_end"),
    ):
        if begin in marks and end in marks:
            rows["server"][name] = overlap_ns(of("server"), [(marks[begin], marks[end])])
    applications = {
        "server": [name for pod in critical.servers for name in _applications(waits, pod)],
        "compute": [name for pod in critical.workers for name in _applications(waits, pod)],
        "proxy": [f"{pod}/proxy" for pod in (*critical.workers, *critical.servers)],
    }
    for component, names in applications.items():
        inside = of(component)
        waited = [_longest_wait(waits.get(name, []), inside) for name in names]
        # Two processes may wait at the same time, and the component has that time once.
        rows[component]["cpu_wait"] = overlap_ns([wait for one in waited for wait in one], inside)
    rows["transmission"] = _transmission_rows(critical, ways, total_ns(of("transmission")))
    return rows


def _sending_rows(critical: LevelWay, ways: Sequence[LevelWay]) -> dict[str, int]:
    """How long whoever serves took until it sent the model on to anybody, and from then on to this client."""
    rows: dict[str, int] = defaultdict(int)
    for depth, hop in enumerate(critical.hops):
        beside = [
            way.hops[depth].chain for way in ways if way.servers[: depth + 1] == critical.servers[: depth + 1]
        ]
        firsts = [chain.down.first_handed_ns for chain in beside if chain.down is not None]
        if firsts and hop.chain.down is not None:
            rows["send_preparation"] += min(firsts) - hop.span[0]
            rows["behind_other_clients"] += hop.chain.down.first_handed_ns - min(firsts)
    return rows


def _applications(waits: Iterable[str], pod: str) -> list[str]:
    """A pod's processes ("pod/container") other than its sidecar."""
    return [name for name in waits if name.startswith(f"{pod}/") and not name.endswith("/proxy")]


def _longest_wait(threads: Sequence[Sequence[Interval]], inside: Sequence[Interval]) -> Sequence[Interval]:
    """The waits of the thread that waited longest inside the intervals: threads wait at the same time."""
    if not inside:
        return ()
    begin_ns, end_ns = min(inside)[0], max(end for _, end in inside)
    near = (_between(waits, begin_ns, end_ns) for waits in threads)
    return max(near, key=lambda waits: overlap_ns(waits, inside), default=())


def _between(disjoint: Sequence[Interval], begin_ns: int, end_ns: int) -> Sequence[Interval]:
    """Of a thread's whole run, what can overlap with one round."""
    first = bisect_right(disjoint, begin_ns, key=lambda wait: wait[1])
    return disjoint[first : bisect_left(disjoint, end_ns, key=lambda wait: wait[0])]


def _transmission_rows(critical: LevelWay, ways: Sequence[LevelWay], transmission_ns: int) -> dict[str, int]:
    """The senders' own accounting, cut to the time that transmission really took on this path."""
    rows: dict[str, int] = defaultdict(int)
    chains = {id(hop.chain): hop.chain for way in ways for hop in way.hops}  # an edge's is in several ways
    downs = [one for chain in chains.values() for one in chain.messages if one.down]
    for message, accounted_ns, windows_full in critical.transmissions:
        # The server's interface is shared by all clients' messages, a client's is its own.
        beside = [one for one in downs if _leaves_beside(one, message)] if message.down else []
        others_bytes = sum(_shared_bytes(message.sent, one.sent) for one in beside)
        part = dict(accounted_ns)
        if windows_full:
            # The interface sends all it may: a window that is full of queued packets limits nothing.
            part["rate_or_queue"] += part.pop("congestion_window")
        shared_ns = part["rate_or_queue"] * others_bytes // (others_bytes + message.sent.bytes)
        part["rate_or_queue"] -= shared_ns
        part["shared_egress"] = shared_ns
        for name, value in part.items():
            rows[name] += value
    total = sum(rows.values())
    if total > transmission_ns and total:
        return {name: value * transmission_ns // total for name, value in rows.items()}
    return dict(rows)


def _leaves_beside(other: HopMessage, message: HopMessage) -> bool:
    """Whether it is for somebody else and of the same sender."""
    return other.path.server == message.path.server and other.path.client != message.path.client


def _shared_bytes(mine: Burst, other: Burst) -> int:
    """Bytes of ``other`` that left while ``mine`` was leaving, assuming an even pace."""
    shared_ns = min(mine.last_ns, other.last_ns) - max(mine.first_ns, other.first_ns)
    length_ns = max(1, other.last_ns - other.first_ns)
    return int(other.bytes * max(0, shared_ns) / length_ns)
