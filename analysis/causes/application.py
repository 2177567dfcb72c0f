"""Application and path: who died, where nobody listens, names, silence, and clients that are too slow."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple

from analysis.causes.attempts import Attempt
from analysis.causes.case import Case, Exit
from analysis.causes.closes import recognise_closes, recognise_resets
from analysis.causes.edges import behind_words, death_of_edge
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.causes.troubles import acts
from analysis.causes.unreachable import recognise_unreachable

__all__ = ("recognise", "words_of_exit")

_FEW = 4
_TOLD_TO_END = (-signal.SIGTERM, 128 + signal.SIGTERM)
_ENDED = "it was told to end"
_OURS = "ztprobe-"  # gates and holds of a run on a cluster, of whose end nobody tells
_GRACE_NS = 35_000_000_000  # between SIGTERM and SIGKILL a pod has 30 s by default


def recognise(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Everything of this class."""
    evicted = list(_evictions(case))
    yield from evicted
    yield from _deaths(case, {pod for one in evicted for pod in one.pods}, troubles)
    yield from _refused(case, troubles)
    yield from _stopped(case, troubles)
    yield from recognise_unreachable(case, troubles)
    yield from recognise_closes(case, troubles)
    yield from recognise_resets(case, troubles)


def words_of_exit(one: Exit) -> str:
    """``was killed by SIGKILL``, ``ended with status 3`` or, where nobody told how, ``ended``."""
    if one.status is None:
        return "ended"
    if one.status >= 0:
        return f"ended with status {one.status}"
    try:
        return f"was killed by {signal.Signals(-one.status).name}"
    except ValueError:
        return f"was killed by signal {-one.status}"


def _evictions(case: Case) -> Iterator[Cause]:
    """Pods all of whose containers were told to end, as an eviction, a restart and a deletion do."""
    containers = {name for sample in case.counters for name in sample["containers"]}
    for pod in case.participants:
        mine = {name for name in containers if name.startswith(f"{pod}/")}
        mine = {name for name in mine if not name.startswith(f"{pod}/{_OURS}")}
        ended = [one for one in case.exits if one.pod == pod]
        told = [one for one in ended if one.status in _TOLD_TO_END]
        # A sidecar that is told to end may do so without an error; what takes too long is killed.
        lasted_ns = max((one.at_ns for one in ended), default=0) - min((one.at_ns for one in told), default=0)
        if not told or mine - {one.process for one in ended} or lasted_ns > _GRACE_NS:
            continue
        if any(one.status not in (0, -signal.SIGKILL, *_TOLD_TO_END) for one in ended):
            continue
        moments = [
            Moment(
                ts_ns=one.at_ns,
                pod=pod,
                event=f"{one.process} {words_of_exit(one)}",
                shows="it was told to end",
            )
            for one in ended
        ]
        again = _runs_again(case, pod, max(one.at_ns for one in ended))
        if again is not None:
            moments.append(again)
        yield cause_of(
            "application.pod_restarted",
            summary=f"{pod} was {'restarted' if again else 'evicted, deleted or shut down'}: "
            f"all of its containers ({', '.join(sorted(one.container for one in ended))}) were told to end"
            f"{behind_words(case, pod)}",
            strength=0.97,
            moments=tuple(sorted(moments)),
            remedial=Remedial(
                words=f"find out who ended {pod} (`kubectl describe pod`: evicted, drained, preempted, a "
                "failed probe), and keep it: a PodDisruptionBudget, a priority, larger requests"
            ),
            pods=(pod,),
            from_ns=min(one.at_ns for one in ended),
            details={"restarted": again is not None},
        )


def _runs_again(case: Case, pod: str, since_ns: int) -> Moment | None:
    """A process of the pod that opened or took a connection after all of them had ended."""
    later = [
        change
        for changes in case.state_changes.values()
        for change in changes
        if change.ts_ns > since_ns and change.process.startswith(f"{pod}/") and change.new == "established"
    ]
    if not later:
        return None
    first = min(later, key=lambda change: change.ts_ns)
    return Moment(
        ts_ns=first.ts_ns, pod=pod, event=f"{first.process} has a connection", shows="it runs again"
    )


def _deaths(case: Case, evicted: Set[str], troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Processes that ended before their time; one that says so itself has mostly been made to.

    :param evicted: pods of which it is said already.
    """
    for one in case.exits:
        if one.status == 0 or one.pod in evicted:
            continue
        killed = one.status is not None and one.status < 0
        untold = one.status is None
        who = one.pod if case.is_attached else one.process  # of whom all processes have ended
        sidecar = case.sidecars.get(one.pod) == one.container
        if one.pod in case.edges and not sidecar:
            yield death_of_edge(case, one, words_of_exit(one), troubles)
            continue
        if sidecar:
            identifier = "tls.sidecar_down"
        elif one.pod == case.server:
            identifier = "application.server_died"
        elif one.pod in case.clients or one.pod in case.behind_edges:
            identifier = "application.client_died"
        else:
            identifier = "application.nothing_listens"
        moments = [
            Moment(
                ts_ns=one.at_ns,
                pod=one.pod,
                event=f"{who} {words_of_exit(one)}",
                shows="it runs no longer",
            )
        ]
        if not killed and not untold and (said := case.log_line(one.pod, "Error", "error", ": ")) is not None:
            shown = said if len(said) <= 160 else f"{said[:160]}..."
            moments.append(
                Moment(ts_ns=one.at_ns, pod=one.pod, event=f"its log: {shown}", shows="its own words")
            )
        yield cause_of(
            identifier,
            summary=f"{who} {words_of_exit(one)}{behind_words(case, one.pod)}",
            # Who was killed did not choose to; who ended by itself had a reason, which may be another cause.
            # Of a deployment that runs already nobody tells which; that it was gone is certain.
            strength=0.96 if killed else 0.92 if untold else 0.35,
            moments=tuple(moments),
            remedial=Remedial(
                words=f"find out who killed {who}, and start it again"
                if killed
                else f"read what {who} says in its log, and start it again"
            ),
            pods=(one.pod,),
            component="residual",
            details={"process": one.process, "status": one.status},
        )


class _Door(NamedTuple):
    pod: str
    target: str
    port: int
    local: bool


def _refused(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """RSTs in place of an answer, from the target itself."""
    tried: dict[_Door, list[Attempt]] = defaultdict(list)
    for one in case.attempts:
        if case.is_ours(one.pod, one.target, "tcp", one.port, one.syns_ns[0]):
            tried[_Door(one.pod, one.target, one.port, one.is_local)].append(one)
    for door, attempts in tried.items():
        refused = [a for a in attempts if a.refused_ns is not None and (a.is_local or a.refused_by_target)]
        acting = [a for a in refused if acts(a.refused_ns or 0, troubles)]
        if not acting:
            continue
        healed = any(a.answered_ns is not None and a.syns_ns[0] > acting[-1].syns_ns[0] for a in attempts)
        yield _nobody_there(case, door, acting, healed)


def _nobody_there(case: Case, door: _Door, refused: Sequence[Attempt], healed: bool) -> Cause:
    container = case.listeners.get((door.target, door.port))
    # Whoever connects to its own pod's loopback speaks to its sidecar; a server's sidecar to its application.
    to_sidecar = (door.local and door.pod != case.server) or (
        container is not None and container == case.sidecars.get(door.target)
    )
    at = f"{'127.0.0.1' if door.local else door.target}:{door.port}"
    moments = [
        Moment(
            ts_ns=one.refused_ns or one.syns_ns[0],
            pod=door.pod,
            event=f"SYN to {at} answered by RST",
            shows=f"nothing listens at {at} in {door.target}",
        )
        for one in (refused if len(refused) <= _FEW else [*refused[: _FEW - 1], refused[-1]])
    ]
    if to_sidecar:
        kind = "tls.sidecar_not_ready" if healed else "tls.sidecar_down"
        words = f"{door.target}'s sidecar {'was not ready' if healed else 'does not listen'} at {at}"
        remedy = f"start {door.target}'s sidecar{' before its application (startupProbe)' if healed else ''}"
        component = "proxy"
    else:
        kind, component = "application.nothing_listens", "tcp_handshake"
        words = (
            f"nothing {'listened' if healed else 'listens'} at {at} in {door.target}; {door.pod} was refused"
        )
        remedy = (
            f"let the server listen at {door.port} in {door.target}, or correct the port that {door.pod} uses"
        )
    return cause_of(
        kind,
        summary=words,
        strength=0.85 if healed else 0.9,
        moments=tuple(moments),
        remedial=Remedial(words=remedy),
        pods=(door.target,),
        component=component,
        details={"port": door.port, "refused": len(refused)},
    )


def _stopped(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Processes that a signal has stopped (SIGSTOP, a debugger, a frozen cgroup)."""
    seen: dict[str, list[int]] = defaultdict(list)
    for sample in case.counters:
        for process, counted in sample["containers"].items():
            if counted.get("stopped") and acts(sample["at_ns"], troubles):
                seen[process].append(sample["at_ns"])
    for process, times in seen.items():
        pod = process.partition("/")[0]
        yield cause_of(
            "application.process_stopped",
            summary=f"{process} is stopped: it is there and does nothing{behind_words(case, pod)}",
            strength=0.95,
            moments=tuple(
                Moment(
                    ts_ns=at_ns, pod=pod, event=f"{process} is in state T (stopped)", shows="it does not run"
                )
                for at_ns in times[:_FEW]
            ),
            remedial=Remedial(words=f"let {process} go on (kill -CONT), and find out who stopped it"),
            pods=(pod,),
            component="compute",
        )
