"""The ledger: each round's wall time on its critical path, in components that close exactly.

Needs the server's ``round_start`` and ``round_end`` and the kernel's events. The server's
other events only fill sub-rows (`analysis.ledger.sub_rows`); the clients' are only compared with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.evidence.participants import by_participant
from analysis.evidence.reader import read_events
from analysis.evidence.values import ACK
from analysis.intervals import Segment, clip, paint
from analysis.ledger.connections import Path, Topology, topology_of
from analysis.ledger.coverage import losses_of
from analysis.ledger.critical_path import Chain, chain_of, setup_overlays
from analysis.ledger.delays import delays_of
from analysis.ledger.handshakes import DnsQuery, Setup, dns_queries, read_setup
from analysis.ledger.model import COMPONENTS, ClientRound, ConnectionSetup, Ledger, RoundLedger
from analysis.ledger.policy_waits import policy_waits, wait_overlays
from analysis.ledger.sub_rows import sub_rows_of
from analysis.ledger.timeline import Message, messages_of
from analysis.run_checks import checked
from ztprobe.errors import RunDirError
from ztprobe.events.kinds import Direction
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
        self.topology: Topology = topology_of(run.meta, events)
        self.windows = windows_of(run.rounds)
        if not self.windows:
            raise RunDirError(f"{run.path}: rounds.jsonl has no round with both round_start and round_end")
        losses = losses_of(run.meta, events, [(window.start_ns, window.end_ns) for window in self.windows])
        self.losses = dict(zip((window.number for window in self.windows), losses, strict=True))
        # What a client pod sent before was our own: the proof that the controls are in force.
        self.clients_started_ns = int(run.meta.get("clients_started_ns", 0))
        self.queries: list[DnsQuery] = dns_queries(events.dns)
        self.setups: dict[Path, Setup | None] = {
            path: read_setup(self.topology.packets(path)) for path in self.topology.paths
        }
        self.down: dict[str, list[Message]] = defaultdict(list)
        self.up: dict[str, list[Message]] = defaultdict(list)
        for path in self.topology.paths:
            self.down[path.client] += messages_of(self.topology, path, down=True)
            self.up[path.client] += messages_of(self.topology, path, down=False)
        for found in (*self.down.values(), *self.up.values()):
            found.sort(key=lambda m: m.first_handed_ns)
        messages = [m for found in (*self.down.values(), *self.up.values()) for m in found]
        self.delays = delays_of(self.topology.server, messages)
        self.policy = policy_waits(self.topology)
        self.reported = reported_training(run.clients)
        # round -> client -> when the server logged that it had the update, where it does
        self.received: dict[int, dict[str, int]] = defaultdict(dict)
        for event in run.rounds:
            if event["event"] == "update_received" and event.get("client_id") in self.topology.clients:
                self.received[event.get("round", -1)][event["client_id"]] = event["time_monotonic_ns"]

    def chain(self, client: str, window: Window) -> Chain:
        down = next(
            (m for m in self.down[client] if window.start_ns <= m.first_handed_ns < window.end_ns), None
        )
        after_ns = down.first_handed_ns if down is not None else window.start_ns
        up = next((m for m in self.up[client] if after_ns < m.first_handed_ns < window.end_ns), None)
        chain = chain_of(
            self.topology,
            self.delays,
            client,
            down,
            up,
            window.start_ns,
            window.end_ns,
            open_ended=self._never_came(client, window),
        )
        if chain.compute is not None:
            setup = self.setups.get(up.path) if up is not None else None
            chain.overlays += setup_overlays(self.topology, up, setup, self.queries, chain.compute[0])
        waits = wait_overlays(self.policy.get(client, ()), (down, up), window.end_ns)
        chain.overlays = waits + chain.overlays
        return chain

    def client_round(self, chain: Chain, window: Window, latest_ns: int) -> ClientRound:
        end_ns = chain.arrival_ns if chain.arrival_ns is not None else window.end_ns
        end_ns = min(max(end_ns, window.start_ns), window.end_ns)
        components, _ = sums(paint(window.start_ns, end_ns, chain.base, chain.overlays))
        kernel_ns = None
        if chain.compute is not None and chain.up is not None:
            cut = [(s.start_ns, s.end_ns) for s in chain.overlays if "compute" in s.over]
            begin_ns, end_of_compute_ns = chain.compute
            opened = clip(cut, begin_ns, end_of_compute_ns)
            # Where a connection is opened for the update, training had ended before that began.
            trained_ns = min((start for start, _ in opened), default=end_of_compute_ns)
            kernel_ns = trained_ns - begin_ns if trained_ns >= begin_ns else None
        return ClientRound(
            client=chain.client,
            arrival_ns=None if chain.arrival_ns is None else chain.arrival_ns - window.start_ns,
            slack_ns=max(0, latest_ns - end_ns),
            components_ns=components,
            compute_kernel_ns=kernel_ns,
            compute_reported_ns=self.reported.get((chain.client, window.number)),
            syn_count=self._syn_count(chain.client, window),
            retransmissions=chain.retransmissions,
            needless_retransmissions=chain.needless_retransmissions,
            segments=tuple(paint(window.start_ns, window.end_ns, chain.base, chain.overlays)),
        )

    def _syn_count(self, client: str, window: Window) -> int:
        return sum(
            1
            for path in self.topology.paths
            if path.client == client
            for p in self.topology.packets(path)
            if p.opens
            and p.direction == Direction.TX
            and not p.tcp_flags & ACK
            and window.start_ns <= p.ts_ns < window.end_ns
        )

    def round(self, window: Window) -> RoundLedger:
        chains = [self.chain(client, window) for client in self.topology.clients]
        missing = [c for c in chains if c.arrival_ns is None]
        arrived = sorted((c for c in chains if c.arrival_ns is not None), key=lambda c: c.arrival_ns or 0)
        # A client whose update never came is what a deadline waited for; otherwise the last to come.
        received = self.received[window.number]
        deadline = [c for c in missing if c.down is not None and received and c.client not in received]
        critical = deadline[-1] if deadline else arrived[-1] if arrived else None
        if not deadline and any(not self._never_came(c.client, window) for c in missing):
            # Somebody's way was not seen to the end; who came last then only the server's log can tell.
            last = max(received, key=lambda client: received[client], default=None)
            critical = next((c for c in chains if c.client == last), None)
        latest_ns = (critical.arrival_ns if critical is not None else None) or window.end_ns
        runner_up = arrived[-2] if len(arrived) > 1 else None
        pieces = paint(
            window.start_ns,
            window.end_ns,
            critical.base if critical is not None else [],
            critical.overlays if critical is not None else [],
        )
        components, residual_ns = sums(pieces)
        sub_rows: dict[str, dict[str, int]] = {}
        if critical is not None:
            sub_rows = sub_rows_of(
                self.topology,
                critical,
                chains,
                pieces,
                start_ns=window.start_ns,
                marks=window.marks,
            )
        loss = self.losses[window.number]
        return RoundLedger(
            round=window.number,
            start_ns=window.start_ns,
            duration_ns=window.end_ns - window.start_ns,
            critical_client=critical.client if critical is not None else None,
            tie=runner_up is not None
            and critical is not None
            and not deadline
            and latest_ns - (runner_up.arrival_ns or 0) < _TIE_NS,
            components_ns=components,
            residual_ns=residual_ns,
            sub_rows_ns=sub_rows,
            clients=tuple(self.client_round(c, window, latest_ns) for c in chains),
            exchanges=self._exchanges(critical.client, window) if critical is not None else 0.0,
            accuracy=window.accuracy,
            lost_events=loss.lost_events,
            coverage=loss.coverage,
            uncertainty_ns=loss.uncertainty_ns(window.end_ns - window.start_ns, residual_ns),
        )

    def _never_came(self, client: str, window: Window) -> bool:
        """Whether an update that was not seen did not come: by the server's log, else if nothing was lost."""
        if any(self.received.values()):
            return client not in self.received[window.number]
        return not self.losses[window.number].lost_events

    def _exchanges(self, client: str, window: Window) -> float:
        inside = [
            m
            for m in (*self.down[client], *self.up[client])
            if window.start_ns <= m.first_handed_ns < window.end_ns
        ]
        return len(inside) / 2

    def setup_rows(self) -> list[ConnectionSetup]:
        rows = []
        first_start_ns = self.windows[0].start_ns
        for path in self.topology.paths:
            setup = self.setups[path]
            served = [
                w.number
                for w in self.windows
                if any(
                    m.path == path and w.start_ns <= m.first_handed_ns < w.end_ns
                    for m in (*self.down[path.client], *self.up[path.client])
                )
            ]
            if setup is None or not served or setup.syn_ns >= first_start_ns:
                continue
            rows.append(self._setup_row(path, setup, len(served)))
        return rows

    def _setup_row(self, path: Path, setup: Setup, served_rounds: int) -> ConnectionSetup:
        opened_ns = self.topology.opened_ns(path.client_lo)
        queries = [
            q.asked_ns
            for q in self.queries
            if q.pod == path.client and self.clients_started_ns <= q.asked_ns <= setup.syn_ns
        ]
        start_ns = opened_ns if opened_ns is not None else min([setup.syn_ns, *queries])
        start_ns = min(start_ns, setup.syn_ns)
        end_ns = max(setup.settings_ns or 0, setup.ready_ns or 0, setup.syn_ns)
        message = next((m for m in (*self.down[path.client], *self.up[path.client]) if m.path == path), None)
        overlays = setup_overlays(self.topology, message, setup, self.queries, start_ns)
        overlays = wait_overlays(self.policy.get(path.client, ()), (message,), end_ns) + overlays
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
        )


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
    """The rounds of a run with every client's way, and what setting up its connections cost.

    :raises RunDirError: the run has no complete round, or names no pods.
    """
    builder = _Builder(run)
    rounds = [
        RoundChains(
            builder.round(window),
            tuple(builder.chain(client, window) for client in builder.topology.clients),
        )
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
        chains = [builder.chain(client, window) for client in builder.topology.clients]
        pieces[window.number] = {
            chain.client: paint(window.start_ns, window.end_ns, chain.base, chain.overlays)
            for chain in chains
        }
    return pieces
