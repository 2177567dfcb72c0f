"""Names that do not exist or lead nowhere, and peers that do not answer, with or without a connection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from analysis.causes.attempts import Attempt
from analysis.causes.case import Case
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.causes.names import Answer, answers_of
from analysis.causes.troubles import acts
from analysis.evidence.values import LoKey, Wire
from ztprobe.events.kinds import Direction

__all__ = ("recognise_unreachable",)

_FEW = 4


def recognise_unreachable(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Everything of this kind."""
    yield from _names(case, troubles)
    yield from _silence(case, troubles)
    yield from _one_sided(case, troubles)


def _surely_unknown(answers: list[Answer]) -> list[Answer]:
    """Without those that only a search list made up: the name itself has to be among them."""
    names = {answer.name for answer in answers}
    shortest = min(names, key=len, default="")
    if len(answers) < 2 or not all(name.startswith(shortest) for name in names):
        return []
    return answers


def _names(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Names that do not exist, or lead to where nobody is."""
    answers = [a for a in answers_of(case.events.dns) if a.answered_ns >= case.since_ns]
    by_pod: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_pod[answer.pod].append(answer)
    for pod, found in by_pod.items():
        unknown = [a for a in found if a.rcode == 3]
        if _is_still_asking(case, pod, unknown):
            continue
        unknown = _surely_unknown(unknown)
        if unknown and not any(a.addresses for a in found) and acts(unknown[-1].answered_ns, troubles):
            name = min((a.name for a in unknown), key=len)  # without what a search list adds
            yield cause_of(
                "application.no_such_name",
                summary=f"{pod} asks for {name}, which does not exist",
                strength=0.92,
                moments=tuple(
                    Moment(ts_ns=a.answered_ns, pod=pod, event=f"{a.name}: no such name (NXDOMAIN)", shows="")
                    for a in unknown[:_FEW]
                ),
                remedial=Remedial(
                    words=f"correct the name that {pod} connects to, or create the Service {name}"
                ),
                pods=(pod,),
                component="dns",
                details={"name": name},
            )
        yield from _wrong_addresses(case, troubles, pod, found)


def _is_still_asking(case: Case, pod: str, unknown: Sequence[Answer]) -> bool:
    """Whether the resolver was on its way through the completions of a name when the run ended."""
    if not unknown:
        return False
    asked = [q for q in case.questions if q.pod == pod]
    first_ns: dict[str, int] = {}  # a question that is sent again is answered again
    for one in unknown:
        first_ns.setdefault(one.name, one.answered_ns)
    again = any(q.asked_ns > first_ns.get(q.name, q.asked_ns) for q in asked)
    return not again and any(q.answered_ns is None and q.asked_ns >= max(first_ns.values()) for q in asked)


def _wrong_addresses(
    case: Case, troubles: Sequence[Trouble], pod: str, answers: Sequence[Answer]
) -> Iterator[Cause]:
    named = {address: answer for answer in answers for address in answer.addresses}
    for address, answer in named.items():
        if case.pod_of(address) == case.server:
            continue
        tried = [
            one
            for one in case.attempts
            if one.pod == pod and one.target == case.pod_of(address) and one.syns_ns[0] >= answer.answered_ns
        ]
        failed = [one for one in tried if one.answered_ns is None and acts(one.syns_ns[-1], troubles)]
        # Where nobody answers for the address on the link, no SYN ever leaves.
        who = case.pod_of(address)
        lost = [
            one
            for one in case.dropped
            if (one.source, one.target) == (pod, who) and acts(one.ts_ns, troubles)
        ]
        if not (failed or lost) or any(one.answered_ns is not None for one in tried):
            continue
        whose = "no pod's address" if who == address else f"{who}'s, where nothing listens"
        yield cause_of(
            "application.wrong_address",
            summary=f"{answer.name} leads {pod} to {address}, which is {whose}",
            strength=0.93,
            moments=(
                Moment(
                    ts_ns=answer.answered_ns,
                    pod=pod,
                    event=f"{answer.name} is {address}, the name server says",
                    shows=f"that is {whose}",
                ),
                *(
                    Moment(
                        ts_ns=one.syns_ns[0],
                        pod=pod,
                        event=f"SYN to {address}:{one.port} "
                        + ("answered by RST" if one.refused_ns else f"unanswered, {len(one.syns_ns)} times"),
                        shows="nobody is there",
                    )
                    for one in failed[:_FEW]
                ),
                *(
                    Moment(
                        ts_ns=one.ts_ns,
                        pod=one.pod,
                        event=f"packet for {address}:{one.target_port} dropped: {one.reason}",
                        shows="nobody has that address",
                    )
                    for one in lost[:_FEW]
                ),
            ),
            remedial=Remedial(
                words=f"let {answer.name} lead to the server's address (Endpoints, records of DNS)"
            ),
            pods=(pod,),
            component="tcp_handshake",
            details={"name": answer.name, "address": address},
        )


def _silence(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """SYNs and questions that nothing answered, and that no filter is known to have dropped."""
    blocked = {(d.source, d.target, d.target_port) for d in case.dropped if d.reason == "NETFILTER_DROP"}
    silent: dict[tuple[str, str, int], list[Attempt]] = defaultdict(list)
    for one in case.attempts:
        ours = case.is_ours(one.pod, one.target, "tcp", one.port, one.syns_ns[0])
        if ours and one.answered_ns is None and one.refused_ns is None and len(one.syns_ns) > 1:
            silent[one.pod, one.target, one.port].append(one)
    for (pod, target, port), attempts in silent.items():
        if (pod, target, port) in blocked or not acts(attempts[-1].syns_ns[-1], troubles):
            continue
        if any(
            a.answered_ns is not None and a.syns_ns[0] > attempts[-1].syns_ns[0]
            for a in case.attempts
            if (a.pod, a.target, a.port) == (pod, target, port)
        ):
            continue
        arrived = any(one.arrived_ns for one in attempts)
        where = f"it arrived at {target} and was not answered" if arrived else f"it was not seen at {target}"
        yield cause_of(
            "application.peer_unreachable",
            summary=f"{target}:{port} does not answer {pod}: {where}",
            strength=0.55,
            moments=tuple(
                Moment(
                    ts_ns=one.syns_ns[0],
                    pod=pod,
                    event=f"SYN to {target}:{port}, sent {len(one.syns_ns)} times in "
                    f"{(one.syns_ns[-1] - one.syns_ns[0]) / 1e9:.1f} s, without an answer",
                    shows=where,
                )
                for one in attempts[:_FEW]
            ),
            remedial=Remedial(words=f"see whether {target} runs, and what lies between {pod} and it"),
            pods=(target,),
            component="tcp_handshake",
            details={"port": port},
        )
    yield from _unanswered_questions(case, troubles)


def _unanswered_questions(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    if any(
        d.target_port == 53 and d.reason == "NETFILTER_DROP" for d in case.dropped if d.ts_ns >= case.since_ns
    ):
        return
    for pod in case.participants[1:]:
        mine = [q for q in case.questions if q.pod == pod and q.asked_ns >= case.since_ns > 0]
        lost = [q for q in mine if q.answered_ns is None and acts(q.asked_ns, troubles)]
        if len(lost) < 2 or any(q.answered_ns is not None and q.asked_ns >= lost[0].asked_ns for q in mine):
            continue
        yield cause_of(
            "application.peer_unreachable",
            summary=f"the name server does not answer {pod}",
            strength=0.6,
            moments=tuple(
                Moment(ts_ns=q.asked_ns, pod=pod, event=f"asked for {q.name}", shows="no answer came")
                for q in lost[:_FEW]
            ),
            remedial=Remedial(words="see whether the name server (CoreDNS) runs"),
            pods=("dns",),
            component="dns",
        )


def _one_sided(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Established connections on which one side sends again and again into nothing."""
    filtered = {frozenset((d.source, d.target)) for d in case.dropped if d.reason == "NETFILTER_DROP"}
    for (pod, key), sent_again in case.events.retransmissions.items():
        if isinstance(key, LoKey) or pod not in case.addresses:
            continue
        late = [
            r for r in sent_again if acts(r.ts_ns, troubles) and r.tcp_state not in ("syn_sent", "syn_recv")
        ]
        peer = case.pod_of(key.peer_of(case.addresses[pod]).address)
        if len(late) < 3 or frozenset((pod, peer)) in filtered:
            continue
        # The same bytes, at growing distances, until the end: nothing of it was ever acknowledged.
        last = [r for r in late if r.seq == late[-1].seq]
        if len(last) < 3 or _heard_after(case, pod, key, last[1].ts_ns):
            continue
        yield cause_of(
            "application.half_open",
            summary=f"{pod} sends to {peer} into nothing: their connection is open at {pod}'s end only",
            strength=0.65,
            moments=tuple(
                Moment(
                    ts_ns=r.ts_ns,
                    pod=pod,
                    event=f"{r.bytes} bytes sent again to {peer}",
                    shows="no acknowledgement since they were first sent",
                )
                for r in (last if len(last) <= _FEW else [*last[: _FEW - 1], last[-1]])
            ),
            remedial=Remedial(
                words="let gRPC's keepalive (grpc.keepalive_time_ms) find dead peers; start the peer again"
            ),
            pods=(peer,),
            component="retransmission",
        )


def _heard_after(case: Case, pod: str, key: Wire, ts_ns: int) -> bool:
    bursts = [
        burst
        for (owner, _, one), found in case.events.bursts.items()
        if owner == pod and one == key
        for burst in found.get(Direction.RX, ())
    ]
    packets = case.events.packets.get((pod, key), ())
    return any(b.last_ns > ts_ns for b in bursts) or any(
        p.ts_ns > ts_ns and p.direction == Direction.RX for p in packets
    )
