"""A CPU that others use: threads of the deployment that were ready to run and did not get one.

How long a thread waited is the scheduler's own account; who ran meanwhile is in the machine's. Waiting that
pods cause each other on a small machine is in every round alike, so only what exceeds it counts, and only as
much as processes that take no part have run. Who has more to compute than in other rounds waits longer,
too: of such a process contention is no more than possible.
"""

from __future__ import annotations

import dataclasses
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from analysis.causes.case import Case
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.contention import ran_outside_ns
from analysis.intervals import Interval, clip, total_ns

__all__ = ("recognise_contention",)

_LEAST_NS = 2_000_000_000
_SHARE = 0.3  # of the trouble's time
_MORE_WORK, _MORE_WORK_S = 2.0, 0.5  # times the usual CPU time of a round, and beyond that
_AS_WORKS_MORE = 0.45
_FEWEST = 2  # samples, to tell what lies between them
_OTHERS_SHARE = 0.5  # of the waiting: so much have others run


class _Waiting(NamedTuple):
    process: str  # pod/container
    waited_ns: int  # of the thread that waited longest, in the trouble
    more_ns: int  # than it waits in other rounds
    stretches: list[Interval]


def recognise_contention(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Of each trouble, the process that waited longest."""
    if case.machine is None:
        return
    calm = _calm(case, troubles)
    for trouble in troubles:
        took_ns = trouble.to_ns - trouble.from_ns
        concerned = {*trouble.pods, case.server} if trouble.pods else {*case.clients, case.server}
        waiting = [
            _waiting(process, threads, trouble, calm)
            for process, threads in sorted(case.events.cpu_waits.items())
            if process.partition("/")[0] in concerned
        ]
        longest = max((one for one in waiting if one is not None), key=lambda one: one.more_ns, default=None)
        if longest is None or longest.more_ns < max(_LEAST_NS, _SHARE * took_ns):
            continue
        node = _node_of(case, longest.process.partition("/")[0])
        others_ns = ran_outside_ns(case.machine, trouble.from_ns, trouble.to_ns, node)
        if others_ns is not None and others_ns >= _OTHERS_SHARE * longest.more_ns:
            found = _cause(trouble, longest, others_ns)
            if _works_more(case, longest.process, trouble, calm):
                found = dataclasses.replace(found, strength=_AS_WORKS_MORE)
            yield found


def _node_of(case: Case, pod: str) -> str:
    return next((str(one["name"]) for one in case.run.meta.get("nodes", ()) if pod in one["pods"]), "")


def _waiting(
    process: str, threads: Sequence[list[Interval]], trouble: Trouble, calm: Sequence[Interval]
) -> _Waiting | None:
    found = []
    for waits in threads:
        inside = _inside(waits, (trouble.from_ns, trouble.to_ns))
        waited_ns = total_ns(inside)
        usual_ns = statistics.median([total_ns(_inside(waits, span)) for span in calm] or [0])
        found.append(_Waiting(process, waited_ns, round(waited_ns - usual_ns), inside))
    return max(found, key=lambda one: one.more_ns, default=None)


def _works_more(case: Case, process: str, trouble: Trouble, calm: Sequence[Interval]) -> bool:
    """Whether it used clearly more CPU time than in other rounds, by its container's counters."""
    counted = case.counted("containers", process, "cpu_ns")
    if len(counted) < _FEWEST:
        return False
    times_ns, used_ns = zip(*counted, strict=True)

    def used_s(span: Interval) -> float:
        begin, end = np.interp(span, times_ns, used_ns)
        return max(0.0, float(end - begin)) / 1e9

    usual_s = statistics.median([used_s(span) for span in calm] or [0.0])
    return used_s((trouble.from_ns, trouble.to_ns)) > _MORE_WORK * usual_s + _MORE_WORK_S


def _inside(waits: list[Interval], span: Interval) -> list[Interval]:
    """What of sorted stretches lies in a span; there may be a hundred thousand, and hundreds of spans."""
    first = bisect_right(waits, span[0], key=lambda one: one[0])
    last = bisect_left(waits, span[1], key=lambda one: one[0])
    return clip(waits[max(0, first - 1) : last], *span)


def _calm(case: Case, troubles: Sequence[Trouble]) -> list[Interval]:
    """The rounds without trouble."""
    begun = {e["round"]: e["time_monotonic_ns"] for e in case.run.rounds if e["event"] == "round_start"}
    ended = {e["round"]: e["time_monotonic_ns"] for e in case.run.rounds if e["event"] == "round_end"}
    known = {number for trouble in troubles for number in trouble.rounds}
    return [(at, ended[n]) for n, at in sorted(begun.items()) if n in ended and n not in known]


def _cause(trouble: Trouble, longest: _Waiting, others_ns: float) -> Cause:
    took_ns = trouble.to_ns - trouble.from_ns
    pod = longest.process.partition("/")[0]
    waited = f"{longest.waited_ns / 1e9:.1f} s of {took_ns / 1e9:.1f} s"
    return cause_of(
        "resources.cpu_contention",
        summary=f"{longest.process} waited for a CPU for {waited}, while processes outside of the deployment "
        f"used {others_ns / 1e9:.1f} s of CPU time",
        strength=min(0.92, 0.65 + 0.35 * longest.more_ns / took_ns),
        moments=(
            Moment(
                ts_ns=longest.stretches[0][0],
                pod=pod,
                event=f"a thread of {longest.process} is ready to run and gets no CPU",
                shows="from here on it waits again and again",
            ),
            Moment(
                ts_ns=longest.stretches[-1][1],
                pod=pod,
                event=f"it has waited for {waited}, {longest.more_ns / 1e9:.1f} s more than in other rounds",
                shows="it had work to do, and no CPU to do it on",
            ),
            Moment(
                ts_ns=trouble.to_ns,
                pod="node",
                event=f"others have used {others_ns / 1e9:.1f} s of CPU time meanwhile",
                shows="the machine was not the deployment's own",
            ),
        ),
        remedial=Remedial(
            words=f"let {pod} have a CPU of its own (resources.requests.cpu), or end what else runs there"
        ),
        pods=(pod,),
        component="compute",
        details={
            "process": longest.process,
            "waited_s": round(longest.waited_ns / 1e9, 3),
            "others_cpu_s": round(others_ns / 1e9, 3),
        },
    )
