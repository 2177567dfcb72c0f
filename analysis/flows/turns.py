"""What was said on each connection, turn by turn, and by which process to which.

A turn is payload in one direction until there was payload in the other, or none for a while. It is seen up to
four times: as it leaves a sender's interface, as it arrives, and in both applications' own calls. Sequence
numbers tell which of these are one.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from analysis.evidence.identity import Connections
from analysis.evidence.values import Endpoint, Key, Wire
from analysis.flows.message_bounds import LARGE_BYTES, Messages
from analysis.flows.processes import Process, Processes, rows_of
from ztprobe.events.kinds import Direction, Hook

__all__ = ("LARGE_BYTES", "Channel", "Turn", "channels_of", "place_arrivals", "round_trips_of")

# Pings, window updates and settings of HTTP/2 are no turns, and cut none in two: a few frames of 13 or 17
# bytes, in a record of TLS where there is any. The shortest request that says anything has more.
_CONTROL_BYTES = 48
# Silence between turns in one direction with nothing said in the other: what is sent again after a loss comes
# later than the probes wait.
_SAME_TURN_NS = 2_000_000_000
# A message's frames that are no data stand so little before it, and so little behind it.
_AHEAD_NS, _BEHIND_NS = 10_000_000, 30_000_000


@dataclass
class Turn:
    """What one end said; times in CLOCK_MONOTONIC nanoseconds."""

    speaker: Process
    listener: Process
    asks: bool  # said by the end that opened the connection: a request, where there are such
    first_ns: int  # left the sender's interface (loopback: left and arrived)
    last_ns: int
    arrived_ns: int  # the first of it arrived
    whole_ns: int  # all of it had arrived
    read_ns: int  # the first of it was read; 0: not seen
    read_whole_ns: int  # all of it had been read; 0: not seen
    bytes: int
    first_seq: int
    pod: str  # of the sender's end, where its retransmissions are counted
    key: Key
    first_ack_ns: int = 0  # from its first payload to the first acknowledgement; 0: not seen
    last_ack_ns: int = 0  # from its last payload to the acknowledgement of all
    is_seen_arriving: bool = True  # False: the listener's end is on a machine where nobody watched
    is_bulk: bool = False  # a message's own bytes, and no frame before or behind it

    @property
    def had_ns(self) -> int:
        """The listening application had all of it."""
        return max(self.whole_ns, self.read_whole_ns)


@dataclass
class Channel:
    """A connection between two processes, and all that was said on it, in order."""

    key: Key
    opened_ns: int  # 0: older than the trace
    turns: list[Turn] = field(default_factory=list)


class _Seen(NamedTuple):
    """A row of the table: sequence numbers do not wrap any more."""

    hook: str
    leaves: bool  # seen at its sender's end
    pod: str
    tgid: int
    first_ns: int
    last_ns: int
    first_seq: int
    end_seq: int
    first_ack_ns: int = 0
    last_ack_ns: int = 0
    is_bulk: bool = False


def channels_of(tables: Mapping[str, pd.DataFrame], processes: Processes) -> list[Channel]:
    """Every connection of which something was seen to be said.

    :param tables: ``turns``, ``connections``, ``packets``; ``bursts`` and ``owners`` where they are there.
    """
    connections = Connections(tables["connections"])
    ends: dict[int, tuple[Endpoint, Endpoint]] = {}
    opened: dict[Key, int] = {}
    opener: dict[Key, Endpoint] = {}
    for row in rows_of(tables["connections"]):
        ends[row.connection] = Endpoint(row.local, row.local_port), Endpoint(row.remote, row.remote_port)
        key = connections.key_of[row.connection]
        opened[key] = max(opened.get(key, 0), row.opened_ns)
    _find_openers(tables["packets"], connections, ends, opener)
    said: dict[Key, dict[Endpoint, list[_Seen]]] = defaultdict(lambda: defaultdict(list))
    messages = Messages(tables.get("bursts"))
    for row in rows_of(tables["turns"]):
        found = connections.key_of.get(row.connection)
        if found is None:
            continue
        local, remote = ends[row.connection]
        sends = row.direction == Direction.TX
        for piece in messages.parted(row):
            said[found][local if sends else remote].append(
                _Seen(
                    row.hook,
                    row.hook == Hook.LO or sends,
                    row.pod,
                    row.tgid,
                    piece.first_ns,
                    piece.last_ns,
                    piece.first_seq,
                    piece.end_seq,
                    row.first_ack_us * 1000 if piece.first_seq == row.first_seq else 0,
                    row.last_ack_us * 1000,
                    piece.is_bulk,
                )
            )
    owned = _Owners(tables.get("owners"), processes)
    listening = frozenset(owned.listening)
    channels = []
    for key, by_end in said.items():
        both = list(by_end)
        if len(both) == 1:  # the other never spoke
            both += [end for end in _ends_of(key, both[0]) if end not in by_end]
        one, other = both[0], both[1] if len(both) > 1 else both[0]
        first = opener.get(key) or _client_by_port(one, other, listening)
        whose = {end: _Whose(by_end, end, peer, owned) for end, peer in ((one, other), (other, one))}
        channel = Channel(key, opened.get(key, 0))
        for end, peer in ((one, other), (other, one)):
            channel.turns += _turns(by_end.get(end, []), whose[end], whose[peer], end == first, key)
        told = (turn for turn in channel.turns if turn.bytes > _CONTROL_BYTES)
        channel.turns = _joined(sorted(told, key=lambda turn: turn.first_ns))
        if channel.turns:
            channels.append(channel)
    return channels


def round_trips_of(channels: Iterable[Channel]) -> dict[str, int]:
    """Client on a machine where nobody watched -> the shortest time in which it acknowledged anything.

    As long as a round trip at least: an acknowledgement may wait for more to come.
    """
    found: dict[str, int] = {}
    for channel in channels:
        for turn in channel.turns:
            name = turn.listener.participant
            if not turn.is_seen_arriving and turn.first_ack_ns and name:
                found[name] = min(found.get(name, turn.first_ack_ns), turn.first_ack_ns)
    return found


def place_arrivals(channels: Iterable[Channel], round_trips: Mapping[str, int]) -> None:
    """When what was sent to machines where nobody watched arrived there, by the acknowledgement's clock.

    Half of the round trip before the acknowledgement came back; no earlier than it was sent.
    """
    for channel in channels:
        for turn in channel.turns:
            if turn.is_seen_arriving:
                continue
            half_ns = round_trips.get(turn.listener.participant, 0) // 2
            turn.arrived_ns = turn.first_ns + half_ns
            acked_ns = turn.last_ns + turn.last_ack_ns - half_ns if turn.last_ack_ns else turn.last_ns
            turn.whole_ns = max(turn.arrived_ns, turn.last_ns, acked_ns)


def _find_openers(
    packets: pd.DataFrame,
    connections: Connections,
    ends: Mapping[int, tuple[Endpoint, Endpoint]],
    opener: dict[Key, Endpoint],
) -> None:
    syn, ack = 2, 16
    opening = packets[(packets["tcp_flags"] & syn > 0) & (packets["tcp_flags"] & ack == 0)]
    for row in rows_of(opening):
        if row.connection in ends:
            local, remote = ends[row.connection]
            opener[connections.key_of[row.connection]] = local if row.direction == Direction.TX else remote


def _ends_of(key: Key, one: Endpoint) -> list[Endpoint]:
    if isinstance(key, Wire):
        return [key.one, key.other]
    return [Endpoint(one.address, port) for port in (key.low_port, key.high_port)]


def _client_by_port(one: Endpoint, other: Endpoint, listening: frozenset[int]) -> Endpoint:
    """Of a connection whose opening was not seen: whose port nobody listens at, or the higher, passing one.

    :param listening: ports; gRPC's usual one, for instance, is higher than many that pass.
    """
    return max(one, other, key=lambda end: (end.port not in listening, end.port))


class _Owners:
    """The table of owners, for ends whose reads and writes were not seen."""

    def __init__(self, table: pd.DataFrame | None, processes: Processes) -> None:
        self.processes = processes
        self._pids: dict[tuple[Endpoint, Endpoint], int] = {}
        self.listening: set[int] = set()
        if table is not None:
            for row in rows_of(table):
                if not row.remote_port:
                    self.listening.add(row.local_port)
                ends = Endpoint(row.local, row.local_port), Endpoint(row.remote, row.remote_port)
                self._pids[ends] = row.pid

    def of(self, end: Endpoint, peer: Endpoint) -> int:
        return self._pids.get((end, peer), 0)


class _Whose:
    """Which process had an end, by its own calls."""

    def __init__(
        self, by_end: Mapping[Endpoint, Sequence[_Seen]], end: Endpoint, peer: Endpoint, owners: _Owners
    ) -> None:
        calls = [
            (seen.first_ns, seen.tgid)
            for said, leaves in ((end, True), (peer, False))
            for seen in by_end.get(said, ())
            if seen.hook == Hook.SOCK and seen.leaves == leaves and seen.tgid
        ]
        self._calls = sorted(calls)
        self._pid = owners.of(end, peer)
        self._processes = owners.processes
        self._elsewhere = owners.processes.elsewhere(end.address) if not calls and not self._pid else None

    def at(self, when_ns: int) -> Process:
        if self._elsewhere is not None:
            return self._elsewhere
        at = bisect_left(self._calls, (when_ns, 0))
        near = min(
            self._calls[max(0, at - 1) : at + 1],
            key=lambda call: abs(call[0] - when_ns),
            default=(0, self._pid),
        )
        return self._processes.at(near[1], when_ns)


def _turns(seen: Sequence[_Seen], speaker: _Whose, listener: _Whose, asks: bool, key: Key) -> Iterator[Turn]:
    if not seen:
        return
    rows = _unwrapped(seen)
    reads = _Pieces([row for row in rows if row.hook == Hook.SOCK and not row.leaves])
    left = [row for row in rows if row.hook != Hook.SOCK and row.leaves]
    arrived = [row for row in rows if row.hook == Hook.LO or (row.hook == Hook.ETH and not row.leaves)]
    arrived = _first_time(arrived, reads.rows)
    arrivals = _Pieces(arrived)
    for row in _begun_before(left, arrived) or reads.rows:
        arrived_at = arrivals.overlapping(row)
        got = arrived_at or [row]
        calls = reads.overlapping(row)
        yield Turn(
            speaker=speaker.at(row.first_ns),
            listener=listener.at(row.last_ns),
            asks=asks,
            first_ns=row.first_ns,
            last_ns=row.last_ns,
            arrived_ns=max(row.first_ns, min(one.first_ns for one in got)),
            whole_ns=max(row.last_ns, max(one.last_ns for one in got)) if got[0] is not row else row.last_ns,
            read_ns=min((one.first_ns for one in calls), default=0),
            read_whole_ns=max((one.last_ns for one in calls), default=0),
            bytes=row.end_seq - row.first_seq,
            first_seq=row.first_seq & 0xFFFFFFFF,
            pod=row.pod,
            key=key,
            first_ack_ns=row.first_ack_ns,
            last_ack_ns=row.last_ack_ns,
            is_seen_arriving=bool(arrived_at),
            is_bulk=row.is_bulk,
        )


def _begun_before(left: Sequence[_Seen], arrived: Sequence[_Seen]) -> list[_Seen]:
    """What was said: as it left, and before that was watched, as it arrived.

    Who comes in the course of a trace has spoken before its own end is watched.
    """
    from_seq = min((row.first_seq for row in left), default=None)
    if from_seq is None:
        return list(arrived)
    earlier = [
        row._replace(end_seq=min(row.end_seq, from_seq)) for row in arrived if row.first_seq < from_seq
    ]
    return [*earlier, *left]


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    """With messages that silence cut, and nothing said in between, as one again.

    Frames that come right before or behind a message are its own; others are of something else on the same
    connection, like a heartbeat.
    """
    kept: list[Turn] = []
    for turn in turns:
        before = kept[-1] if kept else None
        if (
            before is not None
            and before.asks == turn.asks
            and before.speaker == turn.speaker
            and (before.is_bulk or turn.is_bulk)
            and turn.first_ns - before.last_ns < _silence_ns(before, turn)
        ):
            if not before.is_bulk:  # it begins with its own bytes: frames ahead may be of what came before it
                before.first_ns, before.arrived_ns = turn.first_ns, turn.arrived_ns
                before.read_ns, before.first_ack_ns = turn.read_ns, turn.first_ack_ns
            before.is_bulk = True
            before.last_ns = max(before.last_ns, turn.last_ns)
            before.whole_ns = max(before.whole_ns, turn.whole_ns)
            before.read_whole_ns = max(before.read_whole_ns, turn.read_whole_ns)
            before.bytes += turn.bytes
        else:
            kept.append(turn)
    return kept


def _silence_ns(before: Turn, turn: Turn) -> int:
    if before.is_bulk and turn.is_bulk:
        return _SAME_TURN_NS
    return _BEHIND_NS if before.is_bulk else _AHEAD_NS


def _unwrapped(seen: Sequence[_Seen]) -> list[_Seen]:
    """In the order of time, sequence numbers counted on beyond 32 bits."""
    ordered = sorted(seen, key=lambda row: row.first_ns)
    reference = ordered[0].first_seq
    rows = []
    for row in ordered:
        step = (row.first_seq - reference + (1 << 31)) % (1 << 32) - (1 << 31)
        first = reference + step
        length = (row.end_seq - row.first_seq) % (1 << 32)
        rows.append(row._replace(first_seq=first, end_seq=first + length))
        reference = max(reference, first + length)
    return rows


def _first_time(arrived: Sequence[_Seen], reads: Sequence[_Seen]) -> list[_Seen]:
    """Without bytes that came once more: what had been read by then had arrived, for TCP hands over in order.

    A segment that is sent again for nothing (its acknowledgement was late) may come with what is said next,
    and would make of the two one message that took until then.
    """
    read = sorted((row.last_ns, row.end_seq) for row in reads)
    had = list(itertools.accumulate((end_seq for _, end_seq in read), max))
    found = []
    for row in arrived:
        before = bisect_left(read, (row.first_ns, 0))
        known_seq = had[before - 1] if before else row.first_seq
        if row.end_seq > known_seq:
            found.append(row._replace(first_seq=max(row.first_seq, known_seq)))
    return found


class _Pieces:
    """Stretches of one direction's bytes, by where they end."""

    def __init__(self, rows: Sequence[_Seen]) -> None:
        self.rows = sorted(rows, key=lambda row: row.end_seq)

    def overlapping(self, of: _Seen) -> list[_Seen]:
        found = []
        for row in self.rows[bisect_right(self.rows, of.first_seq, key=lambda row: row.end_seq) :]:
            if row.first_seq >= of.end_seq:
                break
            found.append(row)
        return found
