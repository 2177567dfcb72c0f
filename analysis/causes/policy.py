"""Policy: what a packet filter dropped, explained by the policies that were in force.

A policy is blamed only for a packet that opens a connection, that the kernel says a packet filter dropped,
and for which the policies' verdict is a denial. Where none selects either end, none is named. A rejection
leaves the same drop, and an RST that never left the target.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from analysis.causes.case import Case
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.causes.policy_mistakes import mistake_of
from analysis.results.drop_explanations import BY_FILTER
from analysis.results.drops import DroppedPacket
from ztprobe.errors import UsageError
from ztprobe.policy.explanation import Explanation
from ztprobe.policy.remedies import missing_rules

__all__ = ("recognise",)

_DNS = 53
_IDLE_S = 1.5
_AT_ONCE_NS = 700_000_000  # before TCP sends its SYN again
_SHOWN = 6  # drops of one flow in a timeline


class _Flow(NamedTuple):
    source: str
    target: str
    protocol: str
    port: int


def recognise(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """What was blocked, each flow's cause by itself; alike ones are put together by the ranking."""
    blocked = _blocked(case, troubles)
    dns = {flow: drops for flow, drops in blocked.items() if flow.port == _DNS}
    yield from _dns(case, dns)
    found = [one for flow, drops in blocked.items() if flow.port != _DNS for one in _flow(case, flow, drops)]
    yield from found
    # What a filter rejects, it has also ended: that is one thing, and told already.
    if not any(one.of.id == "policy.rejected" for one in found):
        yield from _cut(case, troubles)


def _blocked(case: Case, troubles: Sequence[Trouble]) -> dict[_Flow, list[DroppedPacket]]:
    """New connections of the workload that a filter dropped, by the time of the first."""
    until_ns = max((one.to_ns for one in troubles), default=0)
    found: dict[_Flow, list[DroppedPacket]] = defaultdict(list)
    for drop in case.dropped:
        flow = _Flow(drop.source, drop.target, drop.protocol, drop.target_port)
        if drop.reason not in BY_FILTER or not _opens(drop) or drop.ts_ns > until_ns:
            continue
        if _is_workloads(case, flow, drop):
            found[flow].append(drop)
    return dict(sorted(found.items(), key=lambda item: item[1][0].ts_ns))


def _opens(drop: DroppedPacket) -> bool:
    return drop.protocol != "tcp" or ("S" in drop.tcp_flags and "." not in drop.tcp_flags)


def _is_workloads(case: Case, flow: _Flow, drop: DroppedPacket) -> bool:
    """Whether it was sent after the clients were started (a proof's own may still be under way)."""
    if not case.since_ns or not case.proven:
        return case.is_ours(*flow, drop.ts_ns)
    if drop.protocol == "tcp":
        begun = (
            one.syns_ns[0]
            for one in case.attempts
            if (one.pod, one.target, one.port) == (flow.source, flow.target, flow.port)
            and one.syns_ns[0] <= drop.ts_ns
        )
        return max(begun, default=drop.ts_ns) >= case.since_ns
    return drop.ts_ns >= case.since_ns


def _explain(case: Case, flow: _Flow, ts_ns: int) -> Explanation | None:
    explainer = case.policies.at(ts_ns)
    if explainer is None or flow.protocol not in ("tcp", "udp", "sctp"):
        return None
    ends = [case.addresses.get(end, end) for end in (flow.source, flow.target)]
    try:
        return explainer.explain(ends[0], ends[1], flow.protocol.upper(), flow.port)
    except UsageError:
        return None


def _moments(drops: Sequence[DroppedPacket]) -> list[Moment]:
    return [
        Moment(
            ts_ns=drop.ts_ns,
            pod=drop.pod,
            event=f"{drop.protocol} {drop.source} -> {drop.target}:{drop.target_port}"
            f"{f' [{drop.tcp_flags}]' if drop.tcp_flags else ''} dropped: {drop.reason}"
            f"{f' in {drop.location}' if drop.location else ''}",
            shows="; ".join(drop.explanation),
        )
        for drop in (drops if len(drops) <= _SHOWN else [*drops[: _SHOWN - 1], drops[-1]])
    ]


def _dns(case: Case, dns: dict[_Flow, list[DroppedPacket]]) -> Iterator[Cause]:
    by_pod: dict[tuple[str, str], dict[str, list[DroppedPacket]]] = defaultdict(dict)
    for flow, drops in dns.items():
        by_pod[flow.source, flow.target].setdefault(flow.protocol, []).extend(drops)
    for (source, target), found in by_pod.items():
        at_ns = min(drops[0].ts_ns for drops in found.values())
        explained = {p: _explain(case, _Flow(source, target, p, _DNS), at_ns) for p in ("udp", "tcp")}
        denied = [p for p in found if (one := explained[p]) is not None and one.verdict == "denied"]
        if not denied:
            for protocol, drops in found.items():
                yield from _without_policy(case, _Flow(source, target, protocol, _DNS), drops)
            continue
        # What was not tried is blocked all the same: a resolver asks over TCP only for long answers.
        also = [p for p, one in explained.items() if one is not None and one.verdict == "denied"]
        kind = "dns_blocked" if len(also) == 2 else f"dns_blocked_{also[0]}"
        protocols = " and ".join(p.upper() for p in also)
        objects = [o for p in also if (one := explained[p]) is not None for o in _missing(case, one, at_ns)]
        first = explained[denied[0]]
        assert first is not None
        yield cause_of(
            f"policy.{kind}",
            summary=f"{_policies(first)} do not let {source} ask {target} for names over {protocols}",
            strength=0.97,
            moments=tuple(_moments([d for drops in found.values() for d in drops])),
            remedial=Remedial(
                words=f"allow {source} to reach {target} at port 53 over {protocols}",
                objects=_merged(objects),
            ),
            pods=(source,),
            component="dns",
            details={"policies": _policy_names(first), "port": "53"},
        )


def _flow(case: Case, flow: _Flow, drops: list[DroppedPacket]) -> Iterator[Cause]:
    explained = _explain(case, flow, drops[0].ts_ns)
    if explained is None or explained.verdict != "denied":
        yield from _without_policy(case, flow, drops)
        return
    passed_before = _passed_before(case, flow, drops[0].ts_ns)
    mistake = mistake_of(case, explained, drops[0].ts_ns)
    identifier = "policy.added_mid_run" if passed_before else mistake.identifier
    refused = _rejected(case, flow, drops)
    moments = _moments(drops)
    if refused is not None:
        moments.append(refused)
    what = f"{flow.port}/{flow.protocol.upper()}"
    yield cause_of(
        identifier,
        summary=f"{mistake.words}: {flow.source} cannot reach {flow.target} at {what}",
        strength=0.97,
        moments=tuple(sorted(moments)),
        remedial=Remedial(words=mistake.remedy, objects=_merged(_missing(case, explained, drops[0].ts_ns))),
        pods=(flow.source,),
        component="policy_drop",
        details={"policies": _policy_names(explained), "port": what, "target": flow.target},
    )


def _passed_before(case: Case, flow: _Flow, ts_ns: int) -> bool:
    return any(
        one.answered_ns is not None and case.since_ns <= one.syns_ns[0] < ts_ns
        for one in case.attempts
        if (one.pod, one.target, one.port) == (flow.source, flow.target, flow.port) and flow.protocol == "tcp"
    )


def _rejected(case: Case, flow: _Flow, drops: Sequence[DroppedPacket]) -> Moment | None:
    """An RST or an ICMP error that answered, and did not come from the target."""
    for drop in drops:
        ended = case.refused_ports.get((flow.source, drop.source_port), ()) if flow.protocol == "tcp" else ()
        for at_ns in ended:
            if 0 <= at_ns - drop.ts_ns < _AT_ONCE_NS:
                return Moment(
                    ts_ns=at_ns,
                    pod=flow.source,
                    event=f"the attempt at {flow.target}:{flow.port} ended at once",
                    shows="an RST or an ICMP error answered in the target's place: the filter rejects",
                )
    for one in case.attempts:
        if (one.pod, one.target, one.port) != (flow.source, flow.target, flow.port):
            continue
        if one.refused_ns is not None and not one.refused_by_target and one.syns_ns[0] <= drops[-1].ts_ns:
            return Moment(
                ts_ns=one.refused_ns,
                pod=flow.source,
                event=f"RST from {flow.target}:{flow.port}",
                shows=f"{flow.target} has not sent it: a packet filter on the way has",
            )
    return None


def _without_policy(case: Case, flow: _Flow, drops: list[DroppedPacket]) -> Iterator[Cause]:
    refused = _rejected(case, flow, drops)
    if case.policies.at(drops[0].ts_ns) is None:
        said = "the run holds no policies"
    else:
        said = drops[0].explanation[0] if drops[0].explanation else "no policy denies it"
    moments = _moments(drops) + ([refused] if refused is not None else [])
    yield cause_of(
        "policy.rejected" if refused is not None else "policy.filter_without_policy",
        summary=f"a packet filter {'rejects' if refused is not None else 'drops'} "
        f"{flow.source} -> {flow.target}:{flow.port}/{flow.protocol.upper()} ({said})",
        strength=0.6 if drops[0].verdict == "undecidable" else 0.9,
        moments=tuple(sorted(moments)),
        remedial=Remedial(
            words=f"find the rule that drops it where the packets were lost ({drops[0].pod}): "
            "`nft list ruleset` and `iptables-save -c` in that network namespace"
        ),
        pods=(flow.source,),
        component="policy_drop",
        details={"target": flow.target, "port": f"{flow.port}/{flow.protocol.upper()}"},
    )


def _cut(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Segments of connections that were established, which a filter dropped, again and again."""
    found: dict[tuple[str, str], list[DroppedPacket]] = defaultdict(list)
    for drop in case.dropped:
        in_progress = drop.protocol == "tcp" and not {"S", "R"} & set(drop.tcp_flags)
        if drop.reason in BY_FILTER and in_progress and 0 < case.since_ns <= drop.ts_ns:
            first, second = sorted((drop.source, drop.target))
            found[first, second].append(drop)
    for (one, other), drops in found.items():
        acting = [t for t in troubles if drops[0].ts_ns <= t.to_ns and drops[-1].ts_ns >= t.from_ns]
        if len(drops) < 3 or not acting:
            continue
        client = other if one == case.server else one
        if (idle_s := _idle_s(case, one, other, drops[0].ts_ns)) >= _IDLE_S and not case.changed:
            yield _forgotten(client, one, other, drops, idle_s)
            continue
        yield cause_of(
            "policy.cut_established",
            summary=f"a packet filter drops what {one} and {other} send on a connection that was open before",
            strength=0.93,
            moments=tuple(_moments(drops)),
            remedial=Remedial(
                words="let established connections pass (`ct state established accept` before the rule), "
                "or take the rule back that was added during the run"
            ),
            pods=(client,),
            component="policy_drop",
        )


def _idle_s(case: Case, one: str, other: str, before_ns: int) -> float:
    """How long nothing had passed between two pods."""
    keys = {a.key for a in case.attempts if {a.pod, a.target} == {one, other}}
    passed = [
        at_ns for key in keys if (at_ns := case.last_payload_ns(key, before_ns - _AT_ONCE_NS)) is not None
    ]
    return (before_ns - max(passed)) / 1e9 if passed else 0.0


def _forgotten(client: str, one: str, other: str, drops: Sequence[DroppedPacket], idle_s: float) -> Cause:
    return cause_of(
        "application.idle_connection_dropped",
        summary=f"after {idle_s:.1f} s without data, a packet filter no longer knows the connection of {one} "
        f"and {other} and drops what they send on it",
        strength=0.9,
        moments=tuple(_moments(drops)),
        remedial=Remedial(
            words="raise nf_conntrack_tcp_timeout_established on the node above the longest training, or let "
            "gRPC's keepalive ping"
        ),
        pods=(client,),
        component="policy_drop",
        details={"idle_s": round(idle_s, 3)},
    )


def _missing(case: Case, explained: Explanation, ts_ns: int) -> list[dict[str, object]]:
    explainer = case.policies.at(ts_ns)
    return [] if explainer is None else missing_rules(explainer.objects, explained)


def _merged(objects: Sequence[dict[str, object]]) -> tuple[dict[str, object], ...]:
    found: list[dict[str, object]] = []
    for one in objects:
        if one not in found:
            found.append(one)
    return tuple(found)


def _policy_names(explained: Explanation) -> list[str]:
    names: dict[str, None] = {}
    for side in explained.sides:
        if side.verdict == "denied":
            names |= dict.fromkeys((*(rule.policy for rule in side.denied_by), *side.isolated_by))
    return list(names)


def _policies(explained: Explanation) -> str:
    return ", ".join(_policy_names(explained)) or "the policies"
