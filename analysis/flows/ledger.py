"""The ledger of a deployment that somebody else brought up: the same value as any other run's.

Needs ``round_start`` and ``round_end`` (whoever told them: the application, its log, the traffic) and what
processes were seen to say. For every phase of a round the client whose update came last is on the critical
path; the round is named after the one whose phase took longest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from analysis.evidence.reader import read_events
from analysis.evidence.values import KernelEvents
from analysis.flows.client_path import ClientPath
from analysis.flows.client_paths import ClientPaths, Phase
from analysis.flows.deadlines import deadline_rows
from analysis.flows.observations import facts_of, transfer_of
from analysis.flows.processes import Processes
from analysis.flows.proxies import proxy_pids, speak_for_applications
from analysis.flows.repairs import repairs_of
from analysis.flows.roles import handing_to_nobodys, parts_of
from analysis.flows.setups import holding_up, setups_of
from analysis.flows.turns import channels_of, place_arrivals, round_trips_of
from analysis.intervals import Interval, Segment, overlap_ns, paint
from analysis.ledger.coverage import losses_of
from analysis.ledger.ledger import Window, reported_training, sums, windows_of
from analysis.ledger.model import ClientRound, Ledger, RoundLedger, Transfer
from analysis.run_checks import checked
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import Run

__all__ = ("build_flow_ledger", "is_flow_run")

_TIE_NS = 1_000_000


def is_flow_run(run: Run) -> bool:
    """Whether a run is told by who said what to whom: one that was attached to, with turns in it."""
    return "attachment" in run.meta and len(run.events.get("turns", ())) > 0


class _Builder:
    def __init__(self, run: Run) -> None:
        run, self.notes = checked(run)
        self.run = run
        self.events: KernelEvents = read_events(run.events)
        processes = Processes(
            run.meta["attachment"], run.events["process_starts"], run.events.get("module_loads")
        )
        self.channels = channels_of(run.events, processes)
        speak_for_applications(self.channels, proxy_pids(run.events["turns"]))
        place_arrivals(self.channels, round_trips_of(self.channels))
        self.parts = parts_of(processes, self.channels)
        self.ways = ClientPaths(self.parts, self.channels, processes)
        parts = self.parts
        self.hub_setups = setups_of(self.events, self.channels, frozenset((parts.server, parts.edge)))
        self.setups = {
            client: setups_of(
                self.events,
                self.channels,
                frozenset({parts.edge} | nodes | parts.tasks.get(client, frozenset())),
            )
            for client, nodes in parts.nodes.items()
        }
        self.transfers: list[Transfer] = []
        self.loading: set[str] = set()
        self.windows = windows_of(run.rounds)
        if not self.windows:
            raise RunDirError(f"{run.path}: rounds.jsonl has no round with both round_start and round_end")
        losses = losses_of(run.meta, self.events, [(one.start_ns, one.end_ns) for one in self.windows])
        self.losses = dict(zip((one.number for one in self.windows), losses, strict=True))
        self.reported = reported_training(run.clients)

    def round(self, window: Window) -> RoundLedger:
        ready_ns = window.marks.get("send_start", 0)
        phases = self.ways.phases(window.start_ns, window.end_ns, ready_ns)
        told = [(phase, self.ways.of_phase(phase)) for phase in phases]
        pieces: list[Segment] = []
        clients: dict[str, list[Segment]] = defaultdict(list)
        critical: list[tuple[int, str, bool]] = []
        imports: list[Interval] = []
        for phase, ways in told:
            came = sorted(
                (way for way in ways.values() if way.arrival_ns is not None),
                key=lambda way: way.arrival_ns or 0,
            )
            last = came[-1] if came else None
            if last is not None:
                imports += last.imports
                before_ns = came[-2].arrival_ns if len(came) > 1 else None
                tie = before_ns is not None and (last.arrival_ns or 0) - before_ns < _TIE_NS
                critical.append((phase.end_ns - phase.start_ns, last.client, tie))
            pieces += self._painted(phase, last)
            for client in self.ways.clients:
                clients[client] += self._painted(phase, ways[client])
            self.transfers += [
                transfer_of(window.number, ways[client], self.parts.nodes[client])
                for client in self.ways.clients
            ]
        _, name, tie = max(critical, default=(0, None, False), key=lambda one: one[0])
        if not phases:
            pieces = paint(window.start_ns, window.end_ns, [], [])
        components, residual_ns = sums(pieces)
        starting, computing = (
            [(piece.start_ns, piece.end_ns) for piece in pieces if piece.component == component]
            for component in ("task_start", "compute")
        )
        loss = self.losses[window.number]
        return RoundLedger(
            round=window.number,
            start_ns=window.start_ns,
            duration_ns=window.end_ns - window.start_ns,
            critical_client=name,
            tie=tie,
            components_ns=components,
            residual_ns=residual_ns,
            sub_rows_ns={
                "task_start": {"imports": overlap_ns(imports, starting)},
                "compute": {"imports": overlap_ns(imports, computing)},
            },
            clients=tuple(
                self._client(client, clients[client], [ways[client] for _, ways in told], window, name, told)
                for client in self.ways.clients
            ),
            exchanges=float(len(phases)),
            accuracy=window.accuracy,
            lost_events=loss.lost_events,
            coverage=loss.coverage,
            uncertainty_ns=loss.uncertainty_ns(window.end_ns - window.start_ns, residual_ns),
        )

    def _painted(self, phase: Phase, way: ClientPath | None) -> list[Segment]:
        base = way.base if way is not None else []
        overlays = repairs_of(self.events, way.turns) if way is not None else []
        if way is not None:
            until_ns = phase.end_ns if way.handed_ns is None else way.handed_ns
            overlays += holding_up(self.setups[way.client], compute=way.compute, until_ns=until_ns)
            overlays += holding_up(self.hub_setups, compute=None, until_ns=phase.end_ns)
        return paint(phase.start_ns, phase.end_ns, base, overlays)

    def _client(
        self,
        client: str,
        pieces: list[Segment],
        ways: Sequence[ClientPath],
        window: Window,
        critical: str | None,
        told: Sequence[tuple[Phase, dict[str, ClientPath]]],
    ) -> ClientRound:
        arrivals = [way.arrival_ns for way in ways if way.arrival_ns is not None]
        slack_ns = 0
        for phase_ways in (ways for _, ways in told):
            last_ns = max((way.arrival_ns for way in phase_ways.values() if way.arrival_ns), default=None)
            mine_ns = phase_ways[client].arrival_ns
            if last_ns is not None and mine_ns is not None:
                slack_ns += last_ns - mine_ns
        if not pieces:
            pieces = paint(window.start_ns, window.end_ns, [], [])
        until_ns = arrivals[-1] if arrivals else window.end_ns
        components, _ = sums([_until(piece, until_ns) for piece in pieces])
        # What trains sends an update; what evaluates tells a result.
        training = [way for way in ways if way.has_update] or ways
        compute = [way.compute for way in training if way.compute is not None and not way.loads_late]
        self.loading |= {client for way in ways if way.loads_late}
        return ClientRound(
            client=client,
            arrival_ns=arrivals[-1] - window.start_ns if arrivals else None,
            slack_ns=slack_ns,
            components_ns=components,
            compute_kernel_ns=compute[0][1] - compute[0][0] if compute else None,
            compute_reported_ns=self.reported.get((client, window.number)),
            segments=tuple(pieces),
        )


def _loading_note(clients: set[str]) -> list[str]:
    if not clients:
        return []
    return [
        f"Tasks of {', '.join(sorted(clients))} load code after they have read their message: that is their "
        "start, and compute is what comes behind it. A training time that they log themselves may include "
        "some of it."
    ]


def _unnamed_note(clients: Sequence[str]) -> list[str]:
    if not clients:
        return []
    return [
        f"{', '.join(clients)} hand what they get to processes that belong to nobody who was named: all that "
        "these do, their start included, is told as compute. Name what starts them with the client, by the "
        "network namespace (netns:) or the cgroup that both are in."
    ]


def _until(piece: Segment, end_ns: int) -> Segment:
    return Segment(min(piece.start_ns, end_ns), min(piece.end_ns, end_ns), piece.component)


def build_flow_ledger(run: Run) -> Ledger:
    """Place every round of a run that was attached to on its critical path.

    :raises RunDirError: the run has no complete round.
    :raises ValueError: nobody was seen to exchange a message.
    """
    builder = _Builder(run)
    rounds = tuple(builder.round(window) for window in builder.windows)
    return Ledger(
        rounds=rounds,
        setup=(),
        coverage=float(run.meta.get("coverage", 1.0)),
        notes=(
            *builder.notes,
            *_loading_note(builder.loading),
            *_unnamed_note(handing_to_nobodys(builder.parts, builder.channels)),
        ),
        flow=facts_of(
            builder.parts,
            builder.channels,
            builder.transfers,
            run.meta["attachment"].get("framework"),
            deadline_rows(run.events, builder.channels),
        ),
    )
