"""Connections that one side ended although the other still needed them, and those a proxy kept waiting.

Who closed first is in the kernel's state changes; how long nothing had passed before, in the bursts and the
first payloads. A proxy has two connections for each that it passes on. If it ends both, it has decided that
itself; if one was ended by the other side, or broke, it has only passed that on, however long nothing had
been sent. Why an application closes only it knows: its log supports what the kernel saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple

from analysis.causes.attempts import Attempt
from analysis.causes.case import Case
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.causes.troubles import acts
from analysis.evidence.values import FIN, RST, Key, LoKey, Wire
from ztprobe.events.kinds import Direction

__all__ = ("recognise_closes", "recognise_resets", "recognise_waiting_proxies")

_IDLE_S = 1.5  # a pause that somebody may have taken for the end
_GOODBYE_NS = 500_000_000
_BOTH_NS = 1_000_000_000  # within which a proxy ends both connections of a way
_KEPT_WAITING_NS = 5_000_000_000
# What applications say -> cause, and what the kernel then saw.
_SAID = (
    ("too_many_pings", "application.too_many_pings"),
    ("ENHANCE_YOUR_CALM", "application.too_many_pings"),
    ("eepalive watchdog", "application.keepalive"),
    ("keepalive timeout", "application.keepalive"),
    ("ping timeout", "application.keepalive"),
    ("Ping timeout", "application.keepalive"),
    ("larger than max", "application.message_too_large"),
)
_REMEDIES = {
    "application.too_many_pings": "let the client ping less often than the server permits "
    "(grpc.keepalive_time_ms above grpc.http2.min_ping_interval_without_data_ms)",
    "application.keepalive": "raise grpc.keepalive_timeout_ms above the round trip",
    "application.message_too_large": "raise grpc.max_receive_message_length at the receiver, or send less",
}


class _Close(NamedTuple):
    attempt: Attempt
    at_ns: int
    by: str  # the process that closed first: pod/container
    idle_s: float  # since the last payload


def recognise_closes(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Idle connections that a proxy ended, and what applications ended for reasons of their own."""
    closes = [close for a in case.attempts if (close := _close(case, a)) is not None]
    acting = [c for c in closes if acts(c.at_ns, troubles)]
    for close in acting:
        pod, _, container = close.by.partition("/")
        is_sidecar = case.sidecars.get(pod) == container
        if is_sidecar and close.idle_s >= _IDLE_S and _decided(case, pod, close, closes):
            yield _idle(close, close.by)
    yield from _said(case, troubles, acting)


def _decided(case: Case, pod: str, close: _Close, closes: Sequence[_Close]) -> bool:
    """Whether a sidecar ended both connections of a way, and neither of their other ends did."""
    partners = set(_partners(case, pod, close.attempt.key))
    is_local = close.attempt.is_local
    others = [
        one
        for one in closes
        if pod in (one.attempt.pod, one.attempt.target)
        and (one.attempt.key in partners if partners else one.attempt.is_local != is_local)
    ]
    passed_on = any(
        one.by != close.by and (partners or close.at_ns - one.at_ns <= _BOTH_NS)
        for one in others
        if one.at_ns <= close.at_ns
    )
    return not passed_on and any(
        one.by == close.by and abs(one.at_ns - close.at_ns) <= _BOTH_NS for one in others
    )


def _partners(case: Case, pod: str, key: Key) -> Iterator[Key]:
    """What the same threads of a pod's proxy read and wrote with a connection; none: that was not seen."""
    if isinstance(key, Wire) and (pod, key) in case.events.partners:
        yield case.events.partners[pod, key]
    elif isinstance(key, LoKey):
        yield from (wire for (owner, wire), lo in case.events.partners.items() if (owner, lo) == (pod, key))


def recognise_resets(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Connections between pods that an RST ended in the middle of a trouble: what is left where nothing else
    is seen. At a trouble's end, and in a round that got through, resets are how programs say goodbye.
    """
    stuck = [trouble for trouble in troubles if trouble.kind != "slow"]
    for attempt in case.attempts:
        end = attempt.end()
        if end is None or attempt.is_local or not end.tcp_flags & RST:
            continue
        if not any(one.from_ns <= end.ts_ns < one.to_ns - _GOODBYE_NS for one in stuck):
            continue
        if (close := _close(case, attempt)) is None:
            continue
        by_target = end.direction == Direction.RX
        sender = attempt.target if by_target else attempt.pod
        at = f"{attempt.pod} -> {attempt.target}:{attempt.port}"
        unsent = by_target and not attempt.refused_by_target
        whose = "somebody on the way" if unsent else close.by or sender
        yield cause_of(
            "application.connection_reset",
            summary=f"{whose} reset the connection {at}",
            strength=0.5,
            moments=(
                Moment(
                    ts_ns=end.ts_ns,
                    pod=attempt.pod,
                    event=f"RST on {at}, {close.idle_s:.1f} s after the last payload",
                    shows=f"{sender} has not sent it"
                    if unsent
                    else f"{whose} ended it, and did not close it",
                ),
            ),
            remedial=Remedial(
                words=f"see what {'lies between the two' if unsent else f'{whose} says of it in its log'}"
            ),
            pods=(sender,),
        )


def _close(case: Case, attempt: Attempt) -> _Close | None:
    """Who ended an established connection of the workload, and how long nothing had passed by then."""
    end = attempt.end()
    if end is None or not case.is_ours(attempt.pod, attempt.target, "tcp", attempt.port, attempt.syns_ns[0]):
        return None
    changes = [
        change
        for change in case.state_changes.get(attempt.key, ())
        if change.old == "established" and change.new in ("fin_wait1", "close") and change.process
    ]
    by = min(changes, key=lambda change: change.ts_ns).process if changes else ""
    last_ns = case.last_payload_ns(attempt.key, end.ts_ns)
    return _Close(attempt, end.ts_ns, by, (end.ts_ns - (last_ns or attempt.answered_ns or end.ts_ns)) / 1e9)


def _idle(close: _Close, who: str) -> Cause:
    attempt = close.attempt
    end = attempt.end()
    assert end is not None
    word = "RST" if end.tcp_flags & RST else "FIN" if end.tcp_flags & FIN else "end"
    where = f"{attempt.pod} -> {'127.0.0.1' if attempt.is_local else attempt.target}:{attempt.port}"
    return cause_of(
        "application.idle_connection_dropped",
        summary=f"{who} ended the connection {where} after {close.idle_s:.1f} s without data",
        strength=0.9,
        moments=(
            Moment(
                ts_ns=close.at_ns - round(close.idle_s * 1e9),
                pod=attempt.pod,
                event=f"last payload on {where}",
                shows="nothing passed from then on",
            ),
            Moment(
                ts_ns=close.at_ns,
                pod=who.partition("/")[0],
                event=f"{who} closes it ({word})",
                shows=f"a timeout of about {close.idle_s:.1f} s has ended it: neither application has",
            ),
        ),
        remedial=Remedial(
            words=f"raise the idle timeouts of {who} above the longest training, or let gRPC's keepalive ping"
        ),
        pods=(who.partition("/")[0],),
        details={"idle_s": round(close.idle_s, 3), "closed_by": who},
    )


def _said(case: Case, troubles: Sequence[Trouble], closes: Sequence[_Close]) -> Iterator[Cause]:
    """What an application's own words explain, where the kernel saw it close or its process end."""
    for pod in case.participants:
        for word, identifier in _SAID:
            line = case.log_line(pod, word)
            if line is None:
                continue
            moments = [
                Moment(
                    ts_ns=close.at_ns,
                    pod=close.by.partition("/")[0] or pod,
                    event=f"{close.by or 'somebody'} closes {close.attempt.pod} -> {close.attempt.target}:"
                    f"{close.attempt.port}",
                    shows="an application ends the connection, and no proxy",
                )
                for close in closes
                if pod in (close.attempt.pod, close.attempt.target)
                and case.sidecars.get(close.by.partition("/")[0]) != close.by.partition("/")[2]
            ]
            moments += [
                Moment(
                    ts_ns=one.at_ns, pod=pod, event=f"{one.process} ended with status {one.status}", shows=""
                )
                for one in case.exits
                if one.pod == pod and (one.status or 0) > 0
            ]
            if not moments:
                continue
            at_ns = max(moment.ts_ns for moment in moments)
            moments.append(
                Moment(ts_ns=at_ns, pod=pod, event=f"its log: {line[:200]}", shows="its own words")
            )
            yield cause_of(
                identifier,
                summary=f"{pod}: {_summary(identifier)}",
                strength=0.9,
                moments=tuple(sorted(moments)),
                remedial=Remedial(words=_REMEDIES[identifier]),
                pods=(pod,),
            )
            break


def _summary(identifier: str) -> str:
    return {
        "application.too_many_pings": "the server ended the connection because it was pinged too often",
        "application.keepalive": "a ping was not answered within the keepalive timeout, so the channel ended",
        "application.message_too_large": "a message is larger than the limit of who receives it",
    }[identifier]


def recognise_waiting_proxies(
    case: Case, troubles: Sequence[Trouble], refused: Set[tuple[str, str]]
) -> Iterator[Cause]:
    """A sidecar that has a connection with data and does not open the next one.

    :param refused: (pod, target) whose TLS did not come about: there is nothing to go on with.
    """
    for pod in case.sidecars:
        outgoing = [a for a in case.attempts if a.pod == pod and a.is_local == (pod == case.server)]
        for coming in case.attempts:
            if (
                (coming.pod, pod) in refused
                or coming.target != pod
                or coming.is_local == (pod == case.server)
                or not coming.sent()
            ):
                continue
            since_ns = coming.sent()[-1].ts_ns
            end = coming.end()
            until_ns = end.ts_ns if end is not None else case.until_ns
            ours = case.is_ours(coming.pod, pod, "tcp", coming.port, coming.syns_ns[0])
            if not ours or until_ns - since_ns < _KEPT_WAITING_NS or not acts(since_ns, troubles):
                continue
            opened = [a.syns_ns[0] for a in outgoing if a.syns_ns[0] >= coming.syns_ns[0]]
            first_ns = min(opened, default=until_ns)
            if first_ns - since_ns < _KEPT_WAITING_NS:
                continue
            sidecar = f"{pod}/{case.sidecars[pod]}"
            waited_s = (first_ns - since_ns) / 1e9
            yield cause_of(
                "tls.detection_stall",
                summary=f"{sidecar} has a connection with data and opens the next one "
                f"{f'{waited_s:.0f} s later' if opened else 'not at all'}",
                strength=0.88,
                moments=(
                    Moment(
                        ts_ns=since_ns,
                        pod=pod,
                        event=f"{coming.sent()[-1].payload_bytes} bytes from {coming.pod} for {sidecar}",
                        shows="it has what it needs to go on",
                    ),
                    Moment(
                        ts_ns=first_ns,
                        pod=pod,
                        event=f"{sidecar} {'opens the next connection' if opened else 'has opened none'}",
                        shows=f"it waited for {waited_s:.1f} s: for bytes that tell a protocol, or a timeout",
                    ),
                ),
                remedial=Remedial(
                    words=f"tell {sidecar} the port's protocol (appProtocol, opaque ports, no inspect-delay)"
                ),
                pods=(pod,),
                component="proxy",
            )
