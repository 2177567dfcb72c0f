"""The ledger: each round's wall time on its critical path, in components that close exactly.

Needs the server's ``round_start`` and ``round_end`` and the kernel's events. The server's
other events only fill sub-rows (`analysis.ledger.sub_rows`); the clients' are only compared with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.evidence.participants import by_participant
from analysis.evidence.reader import read_events
from analysis.intervals import Segment, clip, overlap_ns, paint, union
from analysis.ledger.connections import Path, Topology
from analysis.ledger.coverage import losses_of
from analysis.ledger.critical_path import Chain, setup_overlays
from analysis.ledger.handshakes import Setup
from analysis.ledger.levels import Level, LevelWay, levels_of, stitched, ways_of
from analysis.ledger.marks import marks_of, opened_at_ns
from analysis.ledger.model import COMPONENTS, ClientRound, ConnectionSetup, Ledger, RoundLedger
from analysis.ledger.policy_waits import wait_overlays
from analysis.ledger.sub_rows import sub_rows_of
from analysis.run_checks import checked
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import Run

__all__ = (
    "RoundChains",
    "Window",
    "build_ledger",
    "chains_of",
    "client_pieces",
    "reported_training",
    "sums",
    "windows_of",
)

# Two updates closer than this cannot be told apart: the reads' own scheduling noise.
_TIE_NS = 1_000_000


@dataclass(frozen=True)
class Window:
    """A round as the server logged it; times in CLOCK_MONOTONIC nanoseconds."""

    number: int
    start_ns: int
    end_ns: int
    marks: dict[str, int]
    accuracy: float | None


@dataclass(frozen=True)
class RoundChains:
    """A round with the way of every client through it, in the same order as the ledger's clients."""

    ledger: RoundLedger
    chains: tuple[Chain, ...]


def windows_of(events: Iterable[dict[str, Any]]) -> list[Window]:
    """The rounds that have both their ends, in order."""
    by_round: dict[int, dict[str, Any]] = defaultdict(dict)
    accuracy: dict[int, float] = {}
    for event in events:
        if isinstance(event.get("round"), int):
            by_round[event["round"]][event["event"]] = event["time_monotonic_ns"]
            if event["event"] == "evaluate_end" and event.get("accuracy") is not None:
                accuracy[event["round"]] = float(event["accuracy"])
    windows = []
    for number, marks in sorted(by_round.items()):
        if "round_start" in marks and "round_end" in marks:
            windows.append(
                Window(number, marks["round_start"], marks["round_end"], marks, accuracy.get(number))
            )
    return windows


def reported_training(events: Iterable[dict[str, Any]]) -> dict[tuple[str, int], int]:
    """(client, round) -> training time in nanoseconds, as the client logged it."""
    starts: dict[tuple[str, int], int] = {}
    found: dict[tuple[str, int], int] = {}
    for event in events:
        key = (event.get("client_id", ""), event.get("round", -1))
        if event["event"] == "train_start":
            starts[key] = event["time_monotonic_ns"]
        elif event["event"] == "train_end" and key in starts:
            found[key] = event["time_monotonic_ns"] - starts[key]
    return found


class _Builder:
    def __init__(self, run: Run) -> None:
        run, self.notes = checked(run)
        self.run = run = by_participant(run)
        events = read_events(run.events)
        self.waits = events.cpu_waits
        self.level, self.edges = levels_of(run.meta, events)
        self.windows = windows_of(run.rounds)
        if not self.windows:
            raise RunDirError(f"{run.path}: rounds.jsonl has no round with both round_start and round_end")
        losses = losses_of(run.meta, events, [(window.start_ns, window.end_ns) for window in self.windows])
        self.losses = dict(zip((window.number for window in self.windows), losses, strict=True))
        # What a client pod sent before was our own: the proof that the controls are in force.
        self.clients_started_ns = int(run.meta.get("clients_started_ns", 0))
        self.reported = reported_training(run.clients)
        # (who serves, round) -> client -> when its log says that it had the update, where it does
        self.received: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
        top = self.level.topology
        self._note_received(top, run.rounds)
        for name, edge in self.edges.items():
            self._note_received(edge.topology, (e for e in run.clients if e.get("edge_id") == name))

    def _note_received(self, topology: Topology, events: Iterable[dict[str, Any]]) -> None:
        for event in events:
            if event["event"] == "update_received" and event.get("client_id") in topology.clients:
                place = (topology.server, event.get("round", -1))
                self.received[place][event["client_id"]] = event["time_monotonic_ns"]

    @property
    def topology(self) -> Topology:
        """The server's."""
        return self.level.topology

    @property
    def levels(self) -> Iterator[Level]:
        """All of them, the server's first."""
        yield self.level
        yield from self.edges.values()

    def ways(self, window: Window) -> list[list[LevelWay]]:
        """The ways of the clients, by the peer of the server that they go through."""
        span = (window.start_ns, window.end_ns)
        found = []
        for peer in self.topology.clients:
            is_open = self._never_came(self.topology.server, peer, window)
            chain = self.level.chain(peer, span, open_ended=is_open)
            below = self.edges[peer].topology.clients if peer in self.edges else ()
            never_came = {client: self._never_came(peer, client, window) for client in below}
            found.append(ways_of(chain, self.level, self.edges, span, never_came))
        return found

    def client_round(self, way: LevelWay, window: Window, slack_ns: int) -> ClientRound:
        arrival_ns, own = way.arrival_ns, way.own
        end_ns = min(max(window.end_ns if arrival_ns is None else arrival_ns, window.start_ns), window.end_ns)
        components, _ = sums(paint(window.start_ns, end_ns, way.base, way.overlays))
        kernel_ns = None
        if own.compute is not None and own.up is not None:
            cut = [(s.start_ns, s.end_ns) for s in own.overlays if "compute" in s.over]
            begin_ns, end_of_compute_ns = own.compute
            opened = clip(cut, begin_ns, end_of_compute_ns)
            # Where a connection is opened for the update, training had ended before that began.
            trained_ns = min((start for start, _ in opened), default=end_of_compute_ns)
            kernel_ns = trained_ns - begin_ns if trained_ns >= begin_ns else None
        topologies = [level.topology for level in self.levels]
        return ClientRound(
            client=way.client,
            through=way.through,
            arrival_ns=None if arrival_ns is None else arrival_ns - window.start_ns,
            slack_ns=slack_ns,
            components_ns=components,
            compute_kernel_ns=kernel_ns,
            compute_reported_ns=self.reported.get((way.client, window.number)),
            down_bytes=sum(message.sent.bytes for message in own.messages if message.down),
            up_bytes=sum(message.sent.bytes for message in own.messages if not message.down),
            syn_count=len(opened_at_ns(topologies, way.client, window.start_ns, window.end_ns)),
            retransmissions=own.retransmissions,
            needless_retransmissions=own.needless_retransmissions,
            segments=tuple(paint(window.start_ns, window.end_ns, way.base, way.overlays)),
            marks=marks_of(topologies, self.topology.events, way.client, window.start_ns, window.end_ns),
        )

    def _last(self, server: str, chains: Sequence[Chain], window: Window) -> tuple[int | None, bool]:
        """Which of these chains was waited for, and whether in vain, until a deadline.

        A client whose update never came is what a deadline waited for; otherwise the last to come.
        """
        received = self.received[server, window.number]
        missing = [i for i, chain in enumerate(chains) if chain.arrival_ns is None]
        arrived = [i for i, chain in enumerate(chains) if chain.arrival_ns is not None]
        waited = [
            i for i in missing if chains[i].down is not None and received and chains[i].client not in received
        ]
        if waited:
            return waited[-1], True
        if any(not self._never_came(server, chains[i].client, window) for i in missing):
            # Somebody's way was not seen to the end; who came last then only who waited can tell, by its log.
            last = max(received, key=lambda client: received[client], default=None)
            return next((i for i, chain in enumerate(chains) if chain.client == last), None), False
        return max(arrived, key=lambda i: chains[i].arrival_ns or 0, default=None), False

    def critical(self, by_peer: Sequence[Sequence[LevelWay]], window: Window) -> tuple[LevelWay | None, bool]:
        """The way that the round's time was spent on, and whether it ended with a deadline."""
        peer, in_vain = self._last(self.topology.server, [ways[0].top for ways in by_peer], window)
        if peer is None:
            return None, in_vain
        ways = by_peer[peer]
        if len(ways[0].hops) == 1:
            return ways[0], in_vain
        own, missed = self._last(ways[0].through[0], [way.own for way in ways], window)
        # Without one of its clients to name, the edge itself is what is known.
        return (LevelWay.over(ways[0].hops[0]) if own is None else ways[own]), in_vain or missed

    def round(self, window: Window) -> RoundLedger:
        by_peer = self.ways(window)
        ways = [way for each in by_peer for way in each]
        critical, in_vain = self.critical(by_peer, window)
        if not in_vain:
            critical = stitched(ways, (window.start_ns, window.end_ns)) or critical
        pieces = paint(
            window.start_ns,
            window.end_ns,
            critical.base if critical is not None else [],
            critical.overlays if critical is not None else [],
        )
        components, residual_ns = sums(pieces)
        sub_rows: dict[str, dict[str, int]] = {}
        if critical is not None:
            sub_rows = sub_rows_of(self.waits, critical, ways, pieces, marks=window.marks)
        loss = self.losses[window.number]
        return RoundLedger(
            round=window.number,
            start_ns=window.start_ns,
            duration_ns=window.end_ns - window.start_ns,
            critical_client=critical.client if critical is not None else None,
            critical_through=critical.through if critical is not None else (),
            levels_ns=_levels(critical, pieces),
            tie=critical is not None and not in_vain and _is_tie(critical, ways),
            components_ns=components,
            residual_ns=residual_ns,
            sub_rows_ns=sub_rows,
            clients=tuple(
                self.client_round(way, window, _slack_ns(way, critical, ways, window)) for way in ways
            ),
            exchanges=len(critical.own.messages) / 2 if critical is not None else 0.0,
            accuracy=window.accuracy,
            lost_events=loss.lost_events,
            coverage=loss.coverage,
            uncertainty_ns=loss.uncertainty_ns(window.end_ns - window.start_ns, residual_ns),
        )

    def _never_came(self, server: str, client: str, window: Window) -> bool:
        """Whether an update that was not seen did not come: by its server's log, else if nothing was lost."""
        if any(came for (who, _), came in self.received.items() if who == server):
            return client not in self.received[server, window.number]
        return not self.losses[window.number].lost_events

    def setup_rows(self) -> list[ConnectionSetup]:
        return [row for level in self.levels for row in self._setup_rows(level)]

    def _setup_rows(self, level: Level) -> Iterator[ConnectionSetup]:
        first_start_ns = self.windows[0].start_ns
        for path in level.topology.paths:
            setup = level.setups[path]
            served = [
                w.number
                for w in self.windows
                if any(
                    m.path == path and w.start_ns <= m.first_handed_ns < w.end_ns
                    for m in (*level.down[path.client], *level.up[path.client])
                )
            ]
            if setup is not None and served and setup.syn_ns < first_start_ns:
                yield self._setup_row(level, path, setup, len(served))

    def _setup_row(self, level: Level, path: Path, setup: Setup, served_rounds: int) -> ConnectionSetup:
        opened_ns = level.topology.opened_ns(path.client_lo)
        queries = [
            q.asked_ns
            for q in level.queries
            if q.pod == path.client and self.clients_started_ns <= q.asked_ns <= setup.syn_ns
        ]
        start_ns = opened_ns if opened_ns is not None else min([setup.syn_ns, *queries])
        start_ns = min(start_ns, setup.syn_ns)
        end_ns = max(setup.settings_ns or 0, setup.ready_ns or 0, setup.syn_ns)
        messages = (*level.down[path.client], *level.up[path.client])
        message = next((m for m in messages if m.path == path), None)
        overlays = setup_overlays(level.topology, message, setup, level.queries, start_ns)
        overlays = wait_overlays(level.policy.get(path.client, ()), (message,), end_ns) + overlays
        base = [Segment(s.start_ns, s.end_ns, s.component) for s in overlays]
        components, residual_ns = sums(paint(start_ns, end_ns, base, []))
        tls = setup.tls
        return ConnectionSetup(
            client=path.client,
            components_ns=components,
            residual_ns=residual_ns,
            duration_ns=end_ns - start_ns,
            served_rounds=served_rounds,
            tls_version=tls.version if tls else None,
            mutual=tls.mutual if tls else None,
            resumed=tls.resumed if tls else None,
            syn_retransmissions=setup.syn_count - 1,
            questions=len(union((s.start_ns, s.end_ns) for s in overlays if s.component == "dns")),
        )


def _slack_ns(way: LevelWay, critical: LevelWay | None, ways: Sequence[LevelWay], window: Window) -> int:
    """How much later this client could have been without making its edge later, and then all."""
    latest_ns = (critical.top.arrival_ns if critical is not None else None) or window.end_ns
    arrival_ns = window.end_ns if way.arrival_ns is None else way.arrival_ns
    # A frame right behind an update counts as its end, and may come when the round is over.
    latest_ns, arrival_ns = (min(max(ns, window.start_ns), window.end_ns) for ns in (latest_ns, arrival_ns))
    slack_ns = max(0, latest_ns - arrival_ns)
    behind = [other.behind_ns(way) or 0 for other in ways if other.through and other.through == way.through]
    return slack_ns + max([0, *behind])


def _is_tie(critical: LevelWay, ways: Sequence[LevelWay]) -> bool:
    apart = (
        critical.behind_ns(way)
        for way in ways
        if (way.client, way.through) != (critical.client, critical.through)
    )
    return any(by is not None and by < _TIE_NS for by in apart)


def _levels(
    critical: LevelWay | None, pieces: Sequence[Segment]
) -> tuple[tuple[str, str, dict[str, int]], ...]:
    """Of a path over several levels, the components by level: (server, client, parts)."""
    if critical is None or not critical.through:
        return ()
    found = []
    for depth, hop in enumerate(critical.hops):
        inner = [critical.hops[depth + 1].span] if depth + 1 < len(critical.hops) else []
        parts = dict.fromkeys(COMPONENTS, 0)
        for piece in pieces:
            if piece.component in parts:
                within = overlap_ns([(piece.start_ns, piece.end_ns)], [hop.span])
                parts[piece.component] += within - overlap_ns([(piece.start_ns, piece.end_ns)], inner)
        found.append((hop.server, hop.chain.client, parts))
    return tuple(found)


def sums(pieces: Sequence[Segment]) -> tuple[dict[str, int], int]:
    """Component -> nanoseconds, and what is nobody's."""
    components = dict.fromkeys(COMPONENTS, 0)
    residual_ns = 0
    for piece in pieces:
        if piece.component in components:
            components[piece.component] += piece.end_ns - piece.start_ns
        else:
            residual_ns += piece.end_ns - piece.start_ns
    return components, residual_ns


def build_ledger(run: Run) -> Ledger:
    """Place every round of a saved run on its critical path.

    :raises RunDirError: the run has no complete round, or names no pods.
    """
    builder = _Builder(run)
    return Ledger(
        rounds=tuple(builder.round(window) for window in builder.windows),
        setup=tuple(builder.setup_rows()),
        coverage=float(run.meta.get("coverage", 1.0)),
        notes=builder.notes,
    )


def chains_of(run: Run) -> tuple[list[RoundChains], list[ConnectionSetup]]:
    """Rounds with every client's way, and what setting up connections cost; raises as `build_ledger`."""
    builder = _Builder(run)
    rounds = [
        RoundChains(builder.round(window), tuple(way.own for ways in builder.ways(window) for way in ways))
        for window in builder.windows
    ]
    return rounds, builder.setup_rows()


def client_pieces(run: Run) -> dict[int, dict[str, list[Segment]]]:
    """Round -> client -> that client's way through the whole round, in pieces that leave no hole.

    The critical client's pieces are what the round's components are the sums of.

    :raises RunDirError: the run has no complete round, or names no pods.
    """
    builder = _Builder(run)
    pieces: dict[int, dict[str, list[Segment]]] = {}
    for window in builder.windows:
        pieces[window.number] = {
            way.client: paint(window.start_ns, window.end_ns, way.base, way.overlays)
            for ways in builder.ways(window)
            for way in ways
        }
    return pieces
