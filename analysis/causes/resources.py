"""Resources: what the kernel's counters say that pods ran out of, while a round failed or was slow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from analysis.causes.case import Case
from analysis.causes.cpu_contention import recognise_contention
from analysis.causes.edges import behind_words
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.causes.windows import recognise_windows

__all__ = ("recognise",)

_THROTTLED_SHARE = 0.15  # of the time in trouble
_NEARLY = 0.98
_MARGIN_NS = 10_000_000_000  # a counter is read every few seconds


def recognise(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Everything of this class."""
    yield from _out_of_memory(case)
    yield from _throttled(case, troubles)
    yield from recognise_contention(case, troubles)
    yield from recognise_windows(case, troubles)
    yield from _queues(case)
    yield from _used_up(case)
    yield from _said_at_the_end(case)


def _grew_at(case: Case, kind: str, name: str, counter: str) -> int | None:
    """When a counter was first seen to have grown."""
    for (_, before), (at_ns, value) in pairwise(case.counted(kind, name, counter)):
        if value > before:
            return at_ns
    return None


def _out_of_memory(case: Case) -> Iterator[Cause]:
    for process in _names(case, "containers"):
        kills = case.growth("containers", process, "oom_kills")
        at_ns = _grew_at(case, "containers", process, "oom_kills")
        if not kills or at_ns is None:
            continue
        pod = process.partition("/")[0]
        ended = [one for one in case.exits if one.process == process]
        limit = case.last("containers", process, "memory_limit_bytes")
        limited = f" of {limit / 2**20:.0f} MiB" if limit else ""
        moments = [
            Moment(
                ts_ns=at_ns,
                pod=pod,
                event=f"cgroup of {process}: oom_kill +{kills}",
                shows=f"the kernel killed {kills} of its processes at the limit{limited}",
            )
        ]
        moments += [
            Moment(
                ts_ns=one.at_ns,
                pod=pod,
                event=f"{process} was killed by signal {-(one.status or 0)}",
                shows="it is gone",
            )
            for one in ended
            if one.status is not None and one.status < 0
        ]
        yield cause_of(
            "resources.oom_kill",
            summary=f"{process} was killed: it needed more memory than its limit{limited}"
            f"{behind_words(case, pod)}",
            strength=0.99,
            moments=tuple(moments),
            remedial=Remedial(
                words=f"raise resources.limits.memory of {process}"
                + (f" above {limit / 2**20:.0f}Mi" if limit else "")
            ),
            pods=(pod,),
            from_ns=min([at_ns, *(one.at_ns for one in ended)]),
            details={"process": process, "limit_bytes": limit},
        )


def _names(case: Case, kind: str) -> list[str]:
    return sorted({name for sample in case.counters for name in sample[kind]})


def _throttled(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    for process in _names(case, "containers"):
        samples = [
            (
                s["at_ns"],
                s["containers"][process]["throttled_ns"],
                s["containers"][process].get("throttled_periods", 0),
            )
            for s in case.counters
            if "throttled_ns" in s["containers"].get(process, {})
        ]
        worst: tuple[float, Moment] | None = None
        since_ns: int | None = None
        for (from_ns, before_ns, periods), (to_ns, after_ns, later) in pairwise(samples):
            if after_ns <= before_ns or not _overlaps(troubles, from_ns, to_ns):
                continue
            share = (after_ns - before_ns) / (to_ns - from_ns)
            if share >= _THROTTLED_SHARE and since_ns is None:
                since_ns = from_ns
            if worst is None or share > worst[0]:
                said = (
                    f"cgroup of {process}: throttled in {later - periods} periods, "
                    f"{(after_ns - before_ns) / 1e9:.1f} s in {(to_ns - from_ns) / 1e9:.1f} s"
                )
                shows = "its CPU limit kept its threads from running"
                worst = share, Moment(ts_ns=to_ns, pod=process.partition("/")[0], event=said, shows=shows)
        if worst is None or worst[0] < _THROTTLED_SHARE:
            continue
        yield cause_of(
            "resources.cpu_throttling",
            summary=f"its CPU limit keeps {process} from running {100 * min(worst[0], 1):.0f} % of the time",
            strength=min(0.95, 0.7 + worst[0] / 2),
            moments=(worst[1],),
            remedial=Remedial(words=f"raise or take away resources.limits.cpu of {process}"),
            pods=(process.partition("/")[0],),
            component="compute",
            from_ns=since_ns or 0,
            details={"process": process, "throttled_share": round(worst[0], 3)},
        )


def _overlaps(troubles: Sequence[Trouble], from_ns: int, to_ns: int) -> bool:
    return any(one.from_ns - _MARGIN_NS <= to_ns and from_ns <= one.to_ns for one in troubles)


_QUEUES: Mapping[str, tuple[str, str, str]] = {
    # counter -> cause, what it shows, what to change
    "syn_queue_full": (
        "resources.syn_queue_overflow",
        "the queue of half-open connections was full",
        "raise net.ipv4.tcp_max_syn_backlog and the listener's backlog, and find out who opens so many",
    ),
    "listen_overflows": (
        "resources.accept_queue_overflow",
        "connections were lost because the queue of those to accept was full",
        "let the listener accept faster, or raise its backlog and net.core.somaxconn",
    ),
    "conntrack_dropped": (
        "resources.conntrack_full",
        "packets were dropped because the node's table of tracked connections was full",
        "raise net.netfilter.nf_conntrack_max on the node, or find out who opens so many connections",
    ),
    **dict.fromkeys(
        ("receive_pruned", "receive_dropped"),
        (
            "resources.receive_buffer_full",
            "a receive buffer was full",
            "raise net.ipv4.tcp_rmem, or let the application read faster",
        ),
    ),
}
# Counters that rise now and then in healthy runs: below this they say nothing.
_NOTEWORTHY = {"receive_pruned": 5, "receive_dropped": 5}
# Of a pod with a sidecar, its loopback's too: there a full buffer is back-pressure of a slow link.
_NOT_BEHIND_SIDECARS = ("receive_pruned", "receive_dropped")
_COUNTED_STRENGTH = {
    "receive_pruned": 0.88,
    "receive_dropped": 0.88,
    "conntrack_dropped": 0.95,
}
# What an application says before it ends -> cause. That it ended is the kernel's word.
_SAID = (
    ("No space left on device", "resources.disk_full", "had no room left on its disk", "make room"),
    ("Too many open files", "resources.descriptors", "had no file descriptor left", "raise ulimit -n"),
)


def _queues(case: Case) -> Iterator[Cause]:
    for pod in _names(case, "pods"):
        for counter, (identifier, shows, remedy) in _QUEUES.items():
            lost = case.growth("pods", pod, counter)
            at_ns = _grew_at(case, "pods", pod, counter)
            if lost < _NOTEWORTHY.get(counter, 1) or at_ns is None:
                continue
            if pod in case.sidecars and counter in _NOT_BEHIND_SIDECARS:
                continue
            yield cause_of(
                identifier,
                summary=f"in {pod}, {shows} ({lost} times)",
                strength=_COUNTED_STRENGTH.get(counter, 0.9),
                moments=(Moment(ts_ns=at_ns, pod=pod, event=f"{counter} +{lost}", shows=shows),),
                remedial=Remedial(words=remedy),
                pods=(pod,),
                component="tcp_handshake",
                from_ns=_looked_before(case, at_ns),
                details={"counter": counter, "count": lost},
            )


def _said_at_the_end(case: Case) -> Iterator[Cause]:
    for one in case.exits:
        for word, identifier, what, remedy in _SAID if (one.status or 0) > 0 else ():
            if (line := case.log_line(one.pod, word)) is not None:
                yield cause_of(
                    identifier,
                    summary=f"{one.process} {what}, and ended",
                    strength=0.8,
                    moments=(
                        Moment(
                            ts_ns=one.at_ns,
                            pod=one.pod,
                            event=f"{one.process} ended with status {one.status}",
                            shows="it gave up by itself",
                        ),
                        Moment(
                            ts_ns=one.at_ns,
                            pod=one.pod,
                            event=f"its log: {line[:200]}",
                            shows="its own words",
                        ),
                    ),
                    remedial=Remedial(words=f"{remedy} for {one.process}"),
                    pods=(one.pod,),
                )


def _used_up(case: Case) -> Iterator[Cause]:
    last: Mapping[str, Any]
    for sample in case.counters:
        at_ns = int(sample["at_ns"])
        for process, counted in sample["containers"].items():
            used, most = counted.get("descriptors", 0), counted.get("descriptor_limit", 0)
            if most and used >= most - 1:
                yield _used(
                    case,
                    "resources.descriptors",
                    at_ns,
                    process.partition("/")[0],
                    f"{process} has {used} of {most} file descriptors open",
                    f"raise the limit of open files (ulimit -n) of {process}, or let it close what it opens",
                )
            if counted.get("full_filesystems"):
                where = ", ".join(counted["full_filesystems"])
                yield _used(
                    case,
                    "resources.disk_full",
                    at_ns,
                    process.partition("/")[0],
                    f"{process} has no room left at {where}",
                    f"make room at {where}, or give the volume a larger sizeLimit",
                )
        for pod, last in sample["pods"].items():
            if last.get("ephemeral_ports") and last.get("sockets", 0) >= _NEARLY * last["ephemeral_ports"]:
                yield _used(
                    case,
                    "resources.ephemeral_ports",
                    at_ns,
                    pod,
                    f"{pod} has {last['sockets']} connections, {last['ephemeral_ports']} ephemeral ports",
                    "widen net.ipv4.ip_local_port_range, or keep connections open",
                )
            if (
                last.get("conntrack_most")
                and last.get("conntrack_entries", 0) >= _NEARLY * last["conntrack_most"]
            ):
                yield _used(
                    case,
                    "resources.conntrack_full",
                    at_ns,
                    "",
                    f"{last['conntrack_entries']} of {last['conntrack_most']} connections are tracked",
                    "raise net.netfilter.nf_conntrack_max on the node",
                )


def _looked_before(case: Case, at_ns: int) -> int:
    """When counters were looked at before: what a sample shows may have begun then."""
    return max((int(s["at_ns"]) for s in case.counters if s["at_ns"] < at_ns), default=at_ns)


def _used(case: Case, identifier: str, at_ns: int, pod: str, said: str, remedy: str) -> Cause:
    """:param pod: whose it is; empty: the node's, and so everybody's."""
    return cause_of(
        identifier,
        summary=said,
        strength=0.9,
        moments=(Moment(ts_ns=at_ns, pod=pod or "node", event=said, shows="there is none left for another"),),
        remedial=Remedial(words=remedy),
        pods=(pod,) if pod else (),
        component="tcp_handshake",
        from_ns=_looked_before(case, at_ns),
    )
