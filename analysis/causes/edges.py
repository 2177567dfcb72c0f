"""Edge aggregators that died, who stood behind them, and what the kernel saw of their end.

A process that is gone has closed its connections, and the kernel tells who closed first: the edge, while the
server and its clients kept theirs open. An edge that is killed did not choose to. One that ends by itself has
a reason: where its peers had left it before, or where it had waited for as long as it waits for anybody, that
reason may be another cause; else it lies in the edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from analysis.causes.case import Case, Exit
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.evidence.values import Key
from analysis.report.wording import listed

__all__ = ("behind_words", "death_of_edge")

_FEW = 4
# Exits are noted by looks: so long before, and after, a process's connections may be seen to end.
_BEFORE_NS, _AFTER_NS = 5_000_000_000, 1_000_000_000
# Of a round's deadline: an edge that ended before that much of it had passed has not waited in vain.
_EARLY_SHARE = 0.5
_KILLED, _BY_ITSELF, _MADE_TO = 0.96, 0.8, 0.35


class _End(NamedTuple):
    """One connection of an edge that the edge's pod ended."""

    ts_ns: int
    process: str  # who closed: pod/container
    peer: str
    way: str  # opener -> target:port
    is_reset: bool
    key: Key


def behind_words(case: Case, pod: str) -> str:
    """``; behind it, fl-client-2 and fl-client-3 could not take part``; empty: it is no edge aggregator."""
    clients = case.edges.get(pod, ())
    return f"; behind it, {listed(clients, _FEW)} could not take part" if clients else ""


def death_of_edge(case: Case, one: Exit, how: str, troubles: Sequence[Trouble]) -> Cause:
    """What is to be said of an edge aggregator whose application ended before its time.

    :param how: it ended, in words.
    """
    ends = list(_ends(case, one))
    own = [end.ts_ns for end in ends if end.process == one.process]
    # All that it still had open ends at once; what it ended long before was another matter.
    died_ns = min([one.at_ns, *(ts_ns for ts_ns in own if ts_ns >= max(own) - _AFTER_NS)])
    # The server's first: on it hangs the round.
    ordered = sorted(ends, key=lambda end: (end.peer != case.server, end.ts_ns))
    shown = [end for end in ordered if end.ts_ns >= died_ns][: 2 * _FEW]
    moments = [*_last_words(case, one, shown), *_closings(shown), *_refused(case, one.pod, died_ns)]
    moments.append(
        Moment(ts_ns=one.at_ns, pod=one.pod, event=f"{one.process} {how}", shows="it runs no longer")
    )
    lost = _lost_rounds(one.pod, died_ns, troubles)
    moments += [_lost(case, one.pod, trouble) for trouble in lost]
    killed = one.status is not None and one.status < 0
    do = f"find out who killed {one.process}" if killed else f"read what {one.process} says in its log"
    strength = _KILLED if killed else _BY_ITSELF if _is_by_itself(case, one, died_ns) else _MADE_TO
    if not killed and (said := case.log_line(one.pod, "Error", "error", ": ")) is not None:
        moments.append(
            Moment(ts_ns=one.at_ns, pod=one.pod, event=f"its log: {said[:160]}", shows="its own words")
        )
    return cause_of(
        "application.edge_died",
        summary=f"{one.process}, an edge aggregator, {how}{_when(lost)}{behind_words(case, one.pod)}",
        strength=strength,
        moments=tuple(sorted(moments)),
        remedial=Remedial(
            words=f"{do}, start it again, and trace anew: its clients reach the server through it alone"
        ),
        pods=(one.pod,),
        from_ns=died_ns,
        details={
            "process": one.process,
            "status": one.status,
            "clients": list(case.edges[one.pod]),
            "since_unix_s": round(case.clock.unix_ns(died_ns) / 1e9, 9),
        },
    )


def _ends(case: Case, one: Exit) -> Iterator[_End]:
    """By connection, where the edge's pod was the first to close about when its process ended."""
    for attempt in case.attempts:
        if one.pod not in (attempt.pod, attempt.target):
            continue
        closed = [
            change
            for change in case.state_changes.get(attempt.key, ())
            if change.old == "established" and change.new in ("fin_wait1", "close")
        ]
        first = min(closed, key=lambda change: change.ts_ns, default=None)
        if first is None or not one.at_ns - _BEFORE_NS <= first.ts_ns <= one.at_ns + _AFTER_NS:
            continue
        # What runs in the end of a process is that process; a peer's close is the peer's.
        if first.pod != one.pod or not first.process.startswith(f"{one.pod}/"):
            continue
        if attempt.is_local and first.process != one.process:
            continue  # its sidecar's way of passing on what came from without
        peer = attempt.pod if attempt.target == one.pod else attempt.target
        yield _End(
            ts_ns=first.ts_ns,
            process=first.process,
            peer="its sidecar" if attempt.is_local else peer,
            way=f"{attempt.pod} -> {'127.0.0.1' if attempt.is_local else attempt.target}:{attempt.port}",
            is_reset=first.new == "close",
            key=attempt.key,
        )


def _last_words(case: Case, one: Exit, ends: Sequence[_End]) -> Iterator[Moment]:
    """When data last passed on a connection that it ended."""
    heard = [(at_ns, end) for end in ends if (at_ns := case.last_payload_ns(end.key, end.ts_ns))]
    if heard:
        last_ns, last = max(heard, key=lambda pair: pair[0])
        yield Moment(
            ts_ns=last_ns,
            pod=one.pod,
            event=f"last data on {last.way}",
            shows="nothing passed through it from then on",
        )


def _closings(ends: Sequence[_End]) -> Iterator[Moment]:
    for end in ends:
        yield Moment(
            ts_ns=end.ts_ns,
            pod=end.process.partition("/")[0],
            event=f"{end.process} closes {end.way} ({'RST' if end.is_reset else 'FIN'})",
            shows=f"it ended at the edge's end: {end.peer} still had it open",
        )


def _refused(case: Case, edge: str, died_ns: int) -> Iterator[Moment]:
    tried = [
        a for a in case.attempts if a.target == edge and a.pod != edge and (a.refused_ns or 0) >= died_ns
    ]
    for attempt in tried[:_FEW]:
        yield Moment(
            ts_ns=attempt.refused_ns or 0,
            pod=attempt.pod,
            event=f"SYN to {edge}:{attempt.port} answered by RST",
            shows=f"nothing listens in {edge} any more",
        )


def _lost_rounds(edge: str, died_ns: int, troubles: Sequence[Trouble]) -> list[Trouble]:
    """The rounds that it was missing from, as the server's log has them."""
    return [
        trouble
        for trouble in troubles
        if trouble.kind in ("unfinished", "missing")
        and edge in trouble.pods
        and any(trouble.rounds)
        and died_ns <= trouble.to_ns
    ]


def _when(lost: Sequence[Trouble]) -> str:
    return f" in round {lost[0].rounds[0]}" if lost and lost[0].kind == "unfinished" else ""


def _lost(case: Case, edge: str, trouble: Trouble) -> Moment:
    clients = case.edges[edge]
    whose = f"what {listed(clients, _FEW)} trained" if clients else "its clients' part"
    return Moment(
        ts_ns=trouble.to_ns,
        pod=case.server,
        event=f"round {trouble.rounds[0]}, {(trouble.to_ns - trouble.from_ns) / 1e9:.1f} s old, "
        f"has no update of {edge}",
        shows=f"{whose} in it is lost",
    )


def _is_by_itself(case: Case, one: Exit, died_ns: int) -> bool:
    """Whether an edge that ended with an error had no peer that left it and nothing to wait for in vain."""
    # Its clients end with an error where it gives them up, and may well be through with that before it is.
    followers = case.edges[one.pod]
    if any(
        other.at_ns <= one.at_ns
        and other.status
        and other is not one
        and not (other.pod in followers and other.status > 0)
        for other in case.exits
    ):
        return False
    deadline_s = case.run.meta.get("facts", {}).get("round_deadline_s")
    begun_ns = max(
        (
            event["time_monotonic_ns"]
            for event in case.run.rounds
            if event["event"] == "round_start" and event["time_monotonic_ns"] <= died_ns
        ),
        default=case.since_ns,
    )
    if not deadline_s or died_ns - begun_ns > _EARLY_SHARE * float(deadline_s) * 1e9:
        return False
    # Its ways to the server: clients may well close theirs once a round has their update.
    upwards = [
        attempt
        for attempt in case.attempts
        if attempt.pod == one.pod and case.listeners.get((attempt.target, attempt.port)) != one.container
    ]
    return not any(
        change.pod == one.pod and change.new == "close_wait" and begun_ns <= change.ts_ns < died_ns
        for attempt in upwards
        for change in case.state_changes.get(attempt.key, ())
    )
