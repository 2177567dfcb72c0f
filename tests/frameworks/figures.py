"""A traced job of Flower's held against what the app and the SuperLink wrote down themselves."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analysis.intervals import Segment
from analysis.ledger.model import Ledger
from analysis.load import Analysed
from analysis.rounds.round_source import settled
from tests.frameworks.hub_log import HubWait
from tests.frameworks.tracing import Truth, truth_of
from ztprobe.rundir.clock import Clock
from ztprobe.rundir.store import Run, load_run

__all__ = ("EXACT_NS", "Figures", "figures_of", "from_traffic", "rounds_of")

MS = 1_000_000
EXACT_NS = 50 * MS  # how far a boundary or a wait may be from the application's own
# A wait ends when the request is there, and before that it is on its way.
_ON_THE_WAY = ("tcp_handshake", "tls_handshake", "propagation", "transmission", "retransmission")


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A message's wait with the hub: by its own log, and as told."""

    client: int
    down: bool
    logged_ms: float
    told_ms: float

    @property
    def off_ms(self) -> float:
        """How far the two are apart."""
        return abs(self.logged_ms - self.told_ms)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One client's training in one round: by its own clock, and as told (None: not told)."""

    client: int
    round: int
    noted_ms: float
    told_ms: float | None

    @property
    def is_right(self) -> bool:
        """Within 5 % or 50 ms."""
        if self.told_ms is None:
            return False
        return abs(self.told_ms - self.noted_ms) <= max(50.0, 0.05 * self.noted_ms)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one run."""

    rounds: int
    joined: int  # of them, with the client that decided each
    boundaries_ms: list[float]  # how far each is from the app's own
    residual_pct: list[float]  # of each round
    trainings: list[Training]
    pauses_s: dict[str, float]  # between two polls, by who polls
    waits: list[Wait]
    by_traffic_right: int  # rounds that the traffic alone told, both boundaries as exact
    by_traffic_invented: int  # ... and that were none

    def __str__(self) -> str:
        """One line."""
        told = [one for one in self.trainings if one.told_ms is not None]
        off = max((abs((one.told_ms or 0) - one.noted_ms) for one in told), default=0.0)
        waits = [one.off_ms for one in self.waits]
        pauses = ", ".join(f"{who} {pause:.3f} s" for who, pause in self.pauses_s.items())
        return (
            f"joined {self.joined}/{self.rounds}; boundaries at most"
            f" {max(self.boundaries_ms, default=0):.0f} ms off; residual"
            f" {statistics.median(self.residual_pct or [100]):.1f} % (median); training right"
            f" {sum(one.is_right for one in told)}/{len(self.trainings)}, at most {off:.0f} ms off; polls"
            f" {pauses}; waits right {sum(ms <= 50 for ms in waits)}/{len(waits)}, at most"
            f" {max(waits, default=0):.0f} ms off; by traffic alone"
            f" {self.by_traffic_right}/{self.rounds} right, {self.by_traffic_invented} invented"
        )

    def save(self, file: Path) -> None:
        """For who wants to know more than the line says."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")


def figures_of(
    analysed: Analysed,
    clock: list[dict[str, Any]],
    names: Mapping[int, str],
    waits: Iterable[HubWait] = (),
) -> Figures:
    """:param names: client's number -> what the run calls it.
    :param waits: what the hub's log tells.
    """
    truth = truth_of(clock)
    found = rounds_of(analysed.run.rounds)
    told = {one.round: one for one in analysed.ledger.rounds}
    joined = [one for one in truth if one.number in found and told.get(one.number) is not None]
    by_traffic = list(rounds_of(from_traffic(analysed.run.path).rounds).values())
    flow = analysed.ledger.flow
    return Figures(
        rounds=len(truth),
        joined=sum(told[one.number].critical_client is not None for one in joined),
        boundaries_ms=[
            abs(there - here) / MS
            for one in joined
            for there, here in zip(found[one.number], (one.start_ns, one.end_ns), strict=True)
        ],
        residual_pct=[100 * one.residual_ns / one.duration_ns for one in told.values()],
        trainings=_trainings(analysed.ledger, clock, names),
        pauses_s={one.who: one.pause_ns / 1e9 for one in flow.pollers} if flow is not None else {},
        waits=_waits(analysed, names, waits),
        by_traffic_right=sum(any(_is(one, each) for each in by_traffic) for one in truth),
        by_traffic_invented=sum(not any(_overlap(each, one) for one in truth) for each in by_traffic),
    )


def rounds_of(events: Sequence[Mapping[str, Any]]) -> dict[int, tuple[int, int]]:
    """Number -> start and end, of whole rounds."""
    times = {
        (event["event"], event["round"]): event["time_monotonic_ns"] for event in events if "round" in event
    }
    return {
        number: (ns, times["round_end", number])
        for (event, number), ns in times.items()
        if event == "round_start" and ("round_end", number) in times
    }


def from_traffic(out: Path) -> Run:
    """The same run as if there had been no log."""
    run = load_run(out)
    nothing = {"source": "traffic", "uncertainty_ns": 0, "detail": ""}
    attachment = {**run.meta["attachment"], "rounds_from": nothing}
    return settled(dataclasses.replace(run, rounds=[], meta={**run.meta, "attachment": attachment}))


def _is(one: Truth, told: tuple[int, int]) -> bool:
    return abs(told[0] - one.start_ns) <= EXACT_NS and abs(told[1] - one.end_ns) <= EXACT_NS


def _overlap(told: tuple[int, int], one: Truth) -> bool:
    return min(told[1], one.end_ns) - max(told[0], one.start_ns) > (told[1] - told[0]) / 2


def _trainings(
    ledger: Ledger, clock: Sequence[Mapping[str, Any]], names: Mapping[int, str]
) -> list[Training]:
    noted = {
        (line["event"], line["round"], line["client"]): line["time_monotonic_ns"]
        for line in clock
        if "client" in line
    }
    told = {(one.round, each.client): each.compute_kernel_ns for one in ledger.rounds for each in one.clients}
    found = []
    for (event, number, client), start_ns in noted.items():
        if event == "train_start" and ("train_end", number, client) in noted:
            told_ns = told.get((number, names[client]))
            found.append(
                Training(
                    client=client,
                    round=number,
                    noted_ms=(noted["train_end", number, client] - start_ns) / MS,
                    told_ms=None if told_ns is None else told_ns / MS,
                )
            )
    return found


def _waits(analysed: Analysed, names: Mapping[int, str], waits: Iterable[HubWait]) -> list[Wait]:
    clock = Clock.of_run(analysed.run.meta)
    offset_ns = clock.offset_ns(analysed.ledger.rounds[0].start_ns)
    pieces: dict[str, list[Segment]] = {}
    for one in analysed.ledger.rounds:
        for client in one.clients:
            pieces.setdefault(client.client, []).extend(client.segments)
    return [
        Wait(
            client=wait.client,
            down=wait.down,
            logged_ms=(wait.served_ns - wait.stored_ns) / MS,
            told_ms=_told_ns(
                pieces.get(names[wait.client], []), wait.stored_ns - offset_ns, wait.served_ns - offset_ns
            )
            / MS,
        )
        for wait in waits
    ]


def _told_ns(pieces: Sequence[Segment], stored_ns: int, served_ns: int) -> int:
    """How long the piece that is that wait took, up to when the request was there."""
    pieces = _waits_as_one(pieces)
    number = _most_of(pieces, ("poll_wait",), stored_ns - EXACT_NS, served_ns + EXACT_NS)
    if number is not None:
        start_ns = pieces[number].start_ns
    else:  # the request was on its way already
        number = _most_of(pieces, _ON_THE_WAY, stored_ns, served_ns)
        if number is None:
            return 0
        start_ns = max(stored_ns, pieces[number].start_ns)
    end_ns = pieces[number].end_ns
    for piece in pieces[number + 1 :]:
        if piece.component not in _ON_THE_WAY:
            # The hub writes its line some time while it has the request.
            held_until_ns = piece.end_ns if piece.component == "store_and_forward" else end_ns
            end_ns = max(end_ns, min(served_ns, held_until_ns))
        if end_ns >= served_ns or piece.component not in _ON_THE_WAY:
            break
        end_ns = piece.end_ns
    return end_ns - start_ns


def _waits_as_one(pieces: Sequence[Segment]) -> list[Segment]:
    """A frame beside a wait (a heartbeat's, a window's), on its way for under 1 ms, cuts it not in two; nor
    does the moment between a connection's two handshakes the way on which the request is then.
    """
    found: list[Segment] = []
    for piece in pieces:
        if (
            len(found) > 1
            and [found[-2].component, piece.component] == ["tcp_handshake", "tls_handshake"]
            and found[-1].end_ns - found[-1].start_ns < MS
        ):
            found[-2:] = [dataclasses.replace(found[-2], end_ns=found[-1].end_ns)]
        if (
            len(found) > 1
            and piece.component == found[-2].component == "poll_wait"
            and found[-1].component in _ON_THE_WAY
            and found[-1].end_ns - found[-1].start_ns < MS
        ):
            found[-2:] = [dataclasses.replace(found[-2], end_ns=piece.end_ns)]
        else:
            found.append(piece)
    return found


def _most_of(pieces: Sequence[Segment], components: Sequence[str], start_ns: int, end_ns: int) -> int | None:
    """Which of the pieces of these components has most of that time; None: none has any."""
    shared = [
        (min(piece.end_ns, end_ns) - max(piece.start_ns, start_ns), number)
        for number, piece in enumerate(pieces)
        if piece.component in components
    ]
    most_ns, number = max(shared, default=(0, 0))
    return number if most_ns > 0 else None
