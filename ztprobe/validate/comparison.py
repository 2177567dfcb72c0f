"""Attributed beside true, round by round: one function per kind of truth.

Where a component is nothing but the injected thing (a handshake), its whole value is
compared with the capture's. Where it also has a cost of its own (training, aggregation), the
rest is taken off as the capture shows it. `elsewhere` is the
part of the injected interval that the ledger painted as something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from analysis.intervals import Segment, clip, overlap_ns, total_ns, union
from analysis.ledger.ledger import build_ledger, client_pieces
from analysis.ledger.model import Ledger, RoundLedger
from analysis.ledger.roles import roles_of
from ztprobe.rundir.store import Run
from ztprobe.validate.inject.scene import Note
from ztprobe.validate.model import Pair
from ztprobe.validate.observe.capture import ACK, SYN, CapturedPacket
from ztprobe.validate.observe.http2 import (
    End,
    Progress,
    behind_sidecar,
    closed_windows,
    sealed_progress,
)
from ztprobe.validate.observe.truth import BULK_BYTES, Interval, Link, between, window_scale

__all__ = ("Measure", "RunEvidence", "from_capture", "injected_part", "noted_part", "slack", "sub_row")

_LOOPBACK = "127.0.0.1"
Measure = Callable[["RunEvidence"], list[Pair]]
CaptureTruth = Callable[["RunEvidence", int], Sequence[Interval]]


@dataclass
class RunEvidence:
    """A finished run, what was observed of the injection, and what was asked for."""

    run: Run
    packets: Mapping[str, Sequence[CapturedPacket]]
    notes: Sequence[Note]
    target: str  # the pod that the cost was put on
    sizes: Mapping[int, str]  # round -> what was asked for; rounds that are missing are not compared
    skipped: list[str] = field(default_factory=list)
    _closed_at: dict[str, dict[tuple[End, End], list[Interval]]] = field(default_factory=dict)
    _sealed_at: dict[str, dict[tuple[End, End], Progress]] = field(default_factory=dict)

    @cached_property
    def ledger(self) -> Ledger:
        """The run's ledger."""
        return build_ledger(self.run)

    @cached_property
    def pieces(self) -> dict[int, dict[str, list[Segment]]]:
        """Round -> client -> pieces."""
        return client_pieces(self.run)

    @cached_property
    def rounds(self) -> dict[int, RoundLedger]:
        """Round -> its ledger."""
        return {entry.round: entry for entry in self.ledger.rounds}

    @cached_property
    def _addresses(self) -> dict[str, str]:
        return {pod["name"]: pod["address"] for pod in self.run.meta["pods"]}

    @cached_property
    def server(self) -> str:
        """The pod whose log the rounds are from, as run.json tells it. :raises ValueError: it does not."""
        return roles_of(self.run.meta).server

    @cached_property
    def server_ports(self) -> frozenset[int]:
        """At which other pods reach the server, as run.json tells it. :raises ValueError: it does not."""
        return roles_of(self.run.meta).ports

    def span(self, number: int) -> Interval:
        """A round's start and end."""
        entry = self.rounds[number]
        return entry.start_ns, entry.start_ns + entry.duration_ns

    def seen(self, pod: str, number: int) -> list[CapturedPacket]:
        """A pod's packets within a round."""
        return between(self.packets[pod], *self.span(number))

    def link(self, number: int, client: str, *, down: bool) -> Link:
        """The round's model (down) or update as both captures saw it."""
        sender, receiver = (self.server, client) if down else (client, self.server)
        start_ns, end_ns = self.span(number)
        return Link(
            self.seen(sender, number),
            between(self.packets[receiver], start_ns, end_ns),
            self._addresses[sender],
            self._addresses[receiver],
            self._window_scale(client, of_client=down),
        )

    def _window_scale(self, client: str, *, of_client: bool) -> int | None:
        """The receiving end's, from the client's first connection; all of them have the same."""
        wanted = SYN if of_client else SYN | ACK
        return next(
            (window_scale(p) for p in self.packets[client] if not p.udp and p.flags & (SYN | ACK) == wanted),
            None,
        )

    def at_application(self, number: int, client: str) -> tuple[Link, Link]:
        """The model and the update at a client's application: on loopback if it has a sidecar."""
        packets = self.packets.get(f"{client}/lo")
        if packets is None:
            return self.link(number, client, down=True), self.link(number, client, down=False)
        mine = between(packets, *self.span(number))
        # The sidecar listens: its port is the lower one.
        port = min(min(p.sport, p.dport) for p in packets)
        down = [p for p in mine if p.sport == port]
        up = [p for p in mine if p.dport == port]
        return Link(down, down, _LOOPBACK, _LOOPBACK), Link(up, up, _LOOPBACK, _LOOPBACK)

    def at_server(self, number: int) -> tuple[Link, Link]:
        """The critical client's model and update on the server's loopback: its update comes last."""
        mine = between(self.packets[f"{self.server}/lo"], *self.span(number))
        # The application listens: its port is the lower one.
        port = min((min(p.sport, p.dport) for p in mine), default=0)
        bulk = [p.sport for p in mine if p.dport == port and p.payload_bytes >= BULK_BYTES]
        client = bulk[-1] if bulk else 0
        down = [p for p in mine if p.sport == port and p.dport == client]
        up = [p for p in mine if p.dport == port and p.sport == client]
        return Link(down, down, _LOOPBACK, _LOOPBACK), Link(up, up, _LOOPBACK, _LOOPBACK)

    def http2_closed(self, number: int, *, down: bool) -> list[Interval]:
        """When the critical client's messages waited for an HTTP/2 window, at their sender's interface.

        :raises WorkloadError: the capture there, or on the sender's loopback, was not whole.
        """
        client = self.rounds[number].critical_client or self.target
        sender, receiver = (self.server, client) if down else (client, self.server)
        ends = (self._addresses[sender], self._addresses[receiver])
        span = self.span(number)
        if f"{sender}/lo" not in self.packets:
            return _within(self._closed(sender), span, lambda one, other: (one[0], other[0]) == ends)
        link = self.at_server(number)[0] if down else self.at_application(number, client)[1]
        ports = (link.sent[0].sport, link.sent[0].dport) if link.sent else None
        closed = _within(self._closed(f"{sender}/lo"), span, lambda one, other: (one[1], other[1]) == ports)
        sealed = self._sealed(sender)
        left = next((p for (one, other), p in sealed.items() if (one[0], other[0]) == ends), [])
        return behind_sidecar(closed, link.progress, left, span[0])

    def _closed(self, place: str) -> dict[tuple[End, End], list[Interval]]:
        if place not in self._closed_at:
            self._closed_at[place] = closed_windows(self.packets[place])
        return self._closed_at[place]

    def _sealed(self, pod: str) -> dict[tuple[End, End], Progress]:
        if pod not in self._sealed_at:
            self._sealed_at[pod] = sealed_progress(self.packets[pod])
        return self._sealed_at[pod]

    def critical(self, number: int, *, anyone: bool = False) -> bool:
        """Whether the target (or anyone) was the round's critical client; notes the round if not."""
        entry = self.rounds.get(number)
        if entry is not None and anyone and entry.critical_client is not None:
            return True
        if entry is None or entry.critical_client != self.target:
            name = "missing" if entry is None else entry.critical_client
            self.skipped.append(f"round {number}: {name} was critical, not {self.target}")
            return False
        return True

    def painted(self, number: int, component: str) -> list[Interval]:
        """Where the round's critical path belongs to a component."""
        client = self.rounds[number].critical_client or ""
        return [
            (p.start_ns, p.end_ns) for p in self.pieces[number].get(client, ()) if p.component == component
        ]

    def elsewhere_ns(self, number: int, component: str, injected: Sequence[Interval]) -> int:
        """How much of the injected intervals the critical path gives to other components."""
        inside = clip(union(injected), *self.span(number))
        return total_ns(inside) - overlap_ns(self.painted(number, component), inside)

    def note(self, number: int, kind: str, pod: str | None = None) -> list[Interval]:
        """What an injector noted on a pod (by default the target)."""
        return [
            (n.begin_ns, n.end_ns)
            for n in self.notes
            if n.round == number and n.kind == kind and n.pod == (pod or self.target)
        ]

    def logged(self, pod: str, number: int, event: str) -> list[dict[str, Any]]:
        """Events of one kind that a pod's application logged in a round."""
        lines = self.run.rounds if pod == self.server else self.run.clients
        return [
            e
            for e in lines
            if e["event"] == event
            and e.get("round") == number
            and (pod == self.server or e.get("client_id") == pod)
        ]

    def injected(self, pod: str, number: int, kind: str) -> list[Interval]:
        """What the application spent on purpose, by its own clock."""
        found = [e for e in self.logged(pod, number, "injected") if e["kind"] == kind]
        return [(e["begin_monotonic_ns"], e["end_monotonic_ns"]) for e in found]


def _within(
    closed: Mapping[tuple[End, End], Sequence[Interval]], span: Interval, wanted: Callable[[End, End], bool]
) -> list[Interval]:
    """Of chosen ways, what closed and opened inside a round."""
    return [
        (closed_ns, opened_ns)
        for (one, other), intervals in closed.items()
        for closed_ns, opened_ns in intervals
        if wanted(one, other) and span[0] <= closed_ns and opened_ns < span[1]
    ]


def from_capture(component: str, truth: CaptureTruth, *, anyone: bool = False) -> Measure:
    """The whole component against the union of the intervals that the capture shows.

    :param anyone: the cost is on every client alike, so whoever was critical is compared.
    """

    def measure(evidence: RunEvidence) -> list[Pair]:
        pairs = []
        for number, size in evidence.sizes.items():
            if not evidence.critical(number, anyone=anyone):
                continue
            true = union(truth(evidence, number))
            pairs.append(
                Pair(
                    round=number,
                    size=size,
                    true_ns=total_ns(true),
                    attributed_ns=evidence.rounds[number].components_ns[component],
                    elsewhere_ns=evidence.elsewhere_ns(number, component, true),
                )
            )
        return pairs

    return measure


def injected_part(
    component: str, kind: str, whole_ns: Callable[[RunEvidence, int], int], *, pod: str | None = None
) -> Measure:
    """A component less what else it holds by another observer's account, against what was spent on purpose.

    :param kind: of the application's ``injected`` events.
    :param whole_ns: all of the component as the other observer saw it, the injected part included.
    :param pod: whose log says what was spent; None: the target's.
    """

    def measure(evidence: RunEvidence) -> list[Pair]:
        def beyond_ns(number: int) -> int:
            return evidence.rounds[number].components_ns[component] - whole_ns(evidence, number)

        pairs = []
        for number, size in evidence.sizes.items():
            if not evidence.critical(number):
                continue
            injected = evidence.injected(pod or evidence.target, number, kind)
            true_ns = total_ns(union(injected))
            pairs.append(
                Pair(
                    round=number,
                    size=size,
                    true_ns=true_ns,
                    attributed_ns=true_ns + beyond_ns(number),
                    elsewhere_ns=evidence.elsewhere_ns(number, component, injected),
                )
            )
        return pairs

    return measure


def noted_part(
    component: str,
    kind: str,
    whole: Callable[[RunEvidence, int], Interval | None],
    *,
    pod: str | None = None,
) -> Measure:
    """The piece of the critical path that holds a noted act, less what the capture says it holds besides.

    :param whole: the piece as the capture shows it; None: the capture misses it. What of the act
        lies outside belongs to somebody else by the ownership rule (the message was not there yet).
    :param pod: that the act was noted on; None: the target.
    """

    def measure(evidence: RunEvidence) -> list[Pair]:
        pairs = []
        for number, size in evidence.sizes.items():
            seen = whole(evidence, number)
            acts = clip(evidence.note(number, kind, pod), *seen) if seen is not None else []
            if seen is None or not acts or not evidence.critical(number):
                continue
            middle_ns = (acts[0][0] + acts[0][1]) // 2
            piece_ns = sum(e - s for s, e in evidence.painted(number, component) if s <= middle_ns < e)
            true_ns = total_ns(union(acts))
            pairs.append(
                Pair(
                    round=number,
                    size=size,
                    true_ns=true_ns,
                    attributed_ns=true_ns + piece_ns - (seen[1] - seen[0]),
                    elsewhere_ns=evidence.elsewhere_ns(number, component, acts),
                )
            )
        return pairs

    return measure


def slack(other: str, leaked_ns: Callable[[RunEvidence, int], int]) -> Measure:
    """How long the server still waited after ``other``'s update, against the ledger's slack of it.

    :param leaked_ns: how far the critical path is off by another observer's account: slack costs no time.
    """

    def measure(evidence: RunEvidence) -> list[Pair]:
        pairs = []
        for number, size in evidence.sizes.items():
            if not evidence.critical(number):
                continue
            received = {
                e["client_id"]: e["time_monotonic_ns"]
                for e in evidence.logged(evidence.server, number, "update_received")
            }
            mine = next(c for c in evidence.rounds[number].clients if c.client == other)
            pairs.append(
                Pair(
                    round=number,
                    size=size,
                    true_ns=received[evidence.target] - received[other],
                    attributed_ns=mine.slack_ns,
                    elsewhere_ns=leaked_ns(evidence, number),
                )
            )
        return pairs

    return measure


def sub_row(
    component: str,
    row: str,
    truth_ns: Callable[[RunEvidence, int], int],
    *,
    within: CaptureTruth,
    anyone: bool = False,
) -> Measure:
    """A sub-row against a number of another observer's; ``anyone`` as in `from_capture`.

    :param within: where the cost lies, at the most; what the ledger gives to other components there
        is cross-talk.
    """

    def measure(evidence: RunEvidence) -> list[Pair]:
        pairs = []
        for number, size in evidence.sizes.items():
            if evidence.critical(number, anyone=anyone):
                attributed_ns = evidence.rounds[number].sub_rows_ns[component].get(row, 0)
                pairs.append(
                    Pair(
                        round=number,
                        size=size,
                        true_ns=truth_ns(evidence, number),
                        attributed_ns=attributed_ns,
                        elsewhere_ns=evidence.elsewhere_ns(number, component, within(evidence, number)),
                    )
                )
        return pairs

    return measure
