"""The graph of a recorded round: what each client did one after another, from what the kernel saw.

The server starts sending; a model goes down to each client (sidecar, wire, sidecar), is trained on, and an
update comes up; the server waits for the last one, aggregates and evaluates. A client's edges are the
ledger's pieces in three stages (down, at the client, up), and for each message what the sender's socket
said its transmission waited for. Clients train on the same CPUs: how much work a training is follows from
how long it took and how many others trained at the same time (`analysis.whatif.processors`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from analysis import contention
from analysis.intervals import Segment
from analysis.ledger.critical_path import Chain
from analysis.ledger.ledger import RoundChains, chains_of
from analysis.ledger.model import COMPONENTS, ClientRound
from analysis.ledger.timeline import HopMessage
from analysis.report.wording import plural
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import Run

__all__ = ("ClientWay", "MessageWay", "RoundWay", "RunWay", "way_of")


_STEADY_MS = 1.0  # paths of a fixed delay show less than a tenth of it


@dataclass(frozen=True, kw_only=True)
class MessageWay:
    """One message from the sending application's first byte until the receiving side had it all."""

    components_ns: dict[str, int]  # and "residual"
    window_ns: int  # of its transmission: waiting for what comes back
    jitter_ns: int  # of its transmission: the last byte was delayed by more than the first
    one_way_ns: int
    bytes: int
    packets: int

    @property
    def total_ns(self) -> int:
        """How long the stage lasts."""
        return sum(self.components_ns.values())


@dataclass(frozen=True, kw_only=True)
class ClientWay:
    """One client in one round, up to the moment when the server had its update."""

    client: str
    before_ns: int  # from round_start to the first byte for this client: the server's
    down: MessageWay
    at_client_ns: dict[str, int]  # compute, setting up a connection for the update, ...
    up: MessageWay

    @property
    def ready_ns(self) -> int:
        """From round_start until the client had the model."""
        return self.before_ns + self.down.total_ns

    @property
    def arrival_ns(self) -> int:
        """From round_start until the server had the update."""
        return self.ready_ns + sum(self.at_client_ns.values()) + self.up.total_ns


@dataclass(frozen=True, kw_only=True)
class RoundWay:
    """A round; it ends ``tail_ns`` after the last update came."""

    round: int
    duration_ns: int
    tail_ns: int  # aggregation and evaluation
    clients: tuple[ClientWay, ...]


@dataclass(frozen=True, kw_only=True)
class RunWay:
    """A run's counted rounds, and what of its surroundings a replay needs."""

    path: str
    experiment: dict[str, Any]  # profile, level, distribution, seed
    clients: int
    reconnect: bool
    congestion_control: str
    cpus: int
    has_rate: bool  # its profile limits the rate, so that it does not show how fast the path is without
    rounds: tuple[RoundWay, ...]
    counted_ns: tuple[int, ...]  # durations of all counted rounds
    contended: bool | None  # others used its machine (`analysis.contention`); None: not recorded
    setup_ns: dict[str, int] = field(default_factory=dict)  # component -> median of what a connection cost
    first: tuple[ClientWay, ...] = ()  # the clients' in round 1, on new connections; empty: not all seen
    varies: bool = False  # in the proof before it its path's delay was not fixed, or packets were lost
    offloads: bool = True  # interfaces cut into packets what pods send
    questions: int = 0  # for names, one after another, before a connection; 0: none was seen

    @property
    def left_out(self) -> int:
        """Counted rounds in which some client's way was not seen to its end."""
        return len(self.counted_ns) - len(self.rounds)

    @property
    def one_way_ns(self) -> dict[str, tuple[int, int]]:
        """Client -> a first segment's way down and an update's way up, in the median."""
        found: dict[str, tuple[int, int]] = {}
        for client in {way.client for one in self.rounds for way in one.clients}:
            ways = [way for one in self.rounds for way in one.clients if way.client == client]
            down, up = ([getattr(way, name).one_way_ns for way in ways] for name in ("down", "up"))
            found[client] = round(median(down)), round(median(up))
        return found


def way_of(run: Run) -> RunWay:
    """The graph of every round that counts (not the first, which warms everything up).

    :raises RunDirError: in none were all clients seen to their end, or the run failed or ran already.
    """
    if "failed" in run.meta or "attachment" in run.meta:
        what = "failed" if "failed" in run.meta else "is of a deployment that ran already"
        raise RunDirError(f"{run.path}: the run {what}: only complete runs that ztprobe made can be replayed")
    rounds, setups = chains_of(run)
    if any(client.through for one in rounds for client in one.ledger.clients):
        raise RunDirError(f"{run.path}: has edge aggregators, through which rounds cannot be replayed yet")
    in_order = sorted(rounds, key=lambda one: one.ledger.start_ns)
    counted = in_order[1:] if len(in_order) > 1 else in_order
    facts = run.meta.get("facts", {})
    control = str(facts.get("congestion_control", "cubic"))
    ways = [way for one in counted if (way := _round_way(one, control == "bbr")) is not None]
    first = _round_way(in_order[0], control == "bbr")
    if not ways:
        raise RunDirError(
            f"{run.path}: in none of {plural(len(counted), 'counted round')} was every client seen to its end"
        )
    experiment = {key: run.meta["experiment"][key] for key in ("profile", "level", "distribution", "seed")}
    parts = [setup.components_ns | {"residual": setup.residual_ns} for setup in setups]
    return RunWay(
        path=str(run.path),
        experiment=experiment,
        clients=len(ways[0].clients),
        reconnect=bool(run.meta.get("options", {}).get("reconnect")),
        congestion_control=control,
        cpus=int(run.meta.get("cores") or 1),
        has_rate=bool((run.meta["emulation"].get("requested") or {}).get("rate_mbit")),
        rounds=tuple(ways),
        counted_ns=tuple(one.ledger.duration_ns for one in counted),
        contended=contention.judge((run, [one.ledger for one in counted]), None, None)["contended"],
        first=() if first is None else first.clients,
        varies=_varies(run.meta["emulation"].get("measured") or {}),
        offloads=bool(facts.get("offloads", True)),
        questions=round(median(setup.questions for setup in setups)) if setups else 0,
        setup_ns={name: round(median(one[name] for one in parts)) for name in (parts[0] if parts else ())},
    )


def _varies(measured: Mapping[str, float | None]) -> bool:
    return (measured.get("jitter_ms") or 0) > _STEADY_MS or bool(measured.get("loss_pct"))


def _round_way(one: RoundChains, is_paced: bool) -> RoundWay | None:
    ways = [
        _client_way(chain, client, one.ledger.start_ns, is_paced)
        for chain, client in zip(one.chains, one.ledger.clients, strict=True)
    ]
    whole = [way for way in ways if way is not None]
    if len(whole) < len(ways) or not whole:
        return None
    latest_ns = max(way.arrival_ns for way in whole)
    return RoundWay(
        round=one.ledger.round,
        duration_ns=one.ledger.duration_ns,
        tail_ns=one.ledger.duration_ns - latest_ns,
        clients=tuple(whole),
    )


def _client_way(chain: Chain, client: ClientRound, start_ns: int, is_paced: bool) -> ClientWay | None:
    """None: not seen from end to end."""
    at_client = next((piece for piece in chain.base if piece.component == "compute"), None)
    if chain.down is None or chain.up is None or client.arrival_ns is None or at_client is None:
        return None
    first_ns, end_ns = chain.down.first_handed_ns, start_ns + client.arrival_ns
    received_ns, written_ns = at_client.start_ns, at_client.end_ns
    if not start_ns <= first_ns <= received_ns <= written_ns <= end_ns:
        return None
    return ClientWay(
        client=chain.client,
        before_ns=first_ns - start_ns,
        down=_message_way(chain, chain.down, _within(client.segments, first_ns, received_ns), is_paced),
        at_client_ns=_within(client.segments, received_ns, written_ns),
        up=_message_way(chain, chain.up, _within(client.segments, written_ns, end_ns), is_paced),
    )


def _within(pieces: Sequence[Segment], start_ns: int, end_ns: int) -> dict[str, int]:
    found = dict.fromkeys((*COMPONENTS, "residual"), 0)
    for piece in pieces:
        length_ns = min(piece.end_ns, end_ns) - max(piece.start_ns, start_ns)
        if length_ns > 0:
            found[piece.component if piece.component in found else "residual"] += length_ns
    return found


def _message_way(
    chain: Chain, message: HopMessage, components_ns: dict[str, int], is_paced: bool
) -> MessageWay:
    accounted = next((one for one in chain.transmissions if one.message is message), None)
    rows = dict(accounted.accounted_ns) if accounted is not None else {}
    transmission_ns = components_ns["transmission"]
    # The sender's account may be longer than what arrived was on its way.
    share = min(1.0, transmission_ns / total) if (total := sum(rows.values())) else 0.0
    jitter_ns = round(share * rows.get("jitter", 0))
    # Who paces by what comes back waits for the path, and not for a rate.
    queue_ns = 0 if is_paced else rows.get("rate_or_queue", 0)
    if accounted is not None and accounted.windows_full:
        queue_ns += rows.get("congestion_window", 0)  # packets that waited for one another: the rate's time
    # Time with nothing in flight is not transmission. With something in flight, a sender that neither rate
    # nor queue holds back waits for what comes back: a window opens, or its buffer has room again.
    waited_ns = transmission_ns - jitter_ns - round(share * queue_ns) if rows else 0
    return MessageWay(
        components_ns=components_ns,
        window_ns=max(0, waited_ns),
        jitter_ns=jitter_ns,
        one_way_ns=message.one_way_ns,
        bytes=message.sent.bytes,
        packets=message.sent.packets,
    )
