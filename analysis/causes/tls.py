"""Mutual TLS: handshakes that were refused, by whom, and for which certificate; TLS to those who speak none.

What TLS 1.3 hides shows in the sizes of its records (RFC 8446, 5.2 and 6): an alert is two bytes, so its
record has 19, a Finished alone has 53 or 69, a Certificate message without a certificate 25, and one with
a certificate several hundred. Who sends the alert refuses the other's certificate. Why it was refused is then
read from the certificates themselves where the run recorded them, or from the proxy's log.
"""

from __future__ import annotations

import json
import re
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from analysis.causes.attempts import Attempt
from analysis.causes.case import Case
from analysis.causes.closes import recognise_waiting_proxies
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.evidence.values import RST, Packet
from analysis.ledger.handshakes import is_server_hello
from ztprobe.events.kinds import Direction

__all__ = ("alert_cause", "recognise")

_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE, _DATA = 20, 21, 22, 23
_HANDSHAKE_FAILURE = 40
_ALERT_RECORD_BYTES = 2 + 1 + 16
_EMPTY_CERTIFICATE_BYTES = range(20, 34)
_FEW = 4
_ACTING_NS = 1_000_000_000
# TLS alerts that travel in clear (RFC 8446, 6) -> cause; whose certificate it is about, if it is about one.
_ALERTS = {
    40: "tls.cipher_mismatch",
    42: "tls.bad_certificate",
    43: "tls.bad_certificate",
    44: "tls.bad_certificate",
    45: "tls.expired_certificate",
    46: "tls.bad_certificate",
    48: "tls.unknown_ca",
    70: "tls.version_mismatch",
    71: "tls.cipher_mismatch",
    86: "tls.version_mismatch",
    116: "tls.no_client_certificate",
}
# OpenSSL's verify errors, as a proxy logs them -> cause.
_VERIFY_ERRORS = {
    **dict.fromkeys((9,), "tls.not_yet_valid_certificate"),
    **dict.fromkeys((10, 12), "tls.expired_certificate"),
    **dict.fromkeys((2, 7, 18, 19, 20, 21), "tls.unknown_ca"),
    62: "tls.wrong_name",
}


_SURE = ("tls.expired_certificate", "tls.unknown_ca")
_UNSURE = "tls.bad_certificate"  # why has to be found out


class _Refusal(NamedTuple):
    identifier: str  # bad_certificate: why has to be found out
    by: str  # who refused; "" where nobody said anything
    whose: str  # the certificate's pod
    moment: Moment


def alert_cause(description: int) -> str:
    """What an alert in clear says."""
    return _ALERTS.get(description, "tls.handshake_failed")


def recognise(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Every connection whose TLS did not come about, alike ones together."""
    found: dict[tuple[str, str, str], list[_Refusal]] = defaultdict(list)
    speaks_tls = {
        (a.target, a.port) for a in case.attempts if _hello(a) is not None and _server_hello(a) is not None
    }
    for attempt in case.attempts:
        if attempt.answered_ns is None or not _is_ours(case, attempt):
            continue
        refusal = _refusal(case, attempt, (attempt.target, attempt.port) in speaks_tls)
        if refusal is not None and _acts(refusal.moment.ts_ns, troubles):
            found[refusal.identifier, attempt.pod, attempt.target].append(refusal)
    refused = {(pod, target) for _, pod, target in found}
    yield from recognise_waiting_proxies(case, troubles, refused)
    for (_, pod, target), refusals in found.items():
        if not _came_through(case, pod, target, refusals[-1].moment.ts_ns):
            yield _cause(case, pod, target, refusals)


def _is_ours(case: Case, attempt: Attempt) -> bool:
    if not case.since_ns and case.mtls_failed:
        return attempt.pod in case.clients and attempt.target == case.server
    return case.is_ours(attempt.pod, attempt.target, "tcp", attempt.port, attempt.syns_ns[0])


def _acts(ts_ns: int, troubles: Sequence[Trouble]) -> bool:
    return any(one.from_ns - _ACTING_NS <= ts_ns <= one.to_ns for one in troubles)


def _came_through(case: Case, pod: str, target: str, after_ns: int) -> bool:
    """Whether a later connection carried a message: then this was over."""
    if not case.since_ns:
        return False
    from ztprobe.events.kinds import Hook

    wires = {a.key for a in case.attempts if (a.pod, a.target) == (pod, target) and a.syns_ns[0] > after_ns}
    return any(
        burst.bytes >= 8 << 10
        for (owner, hook, key), bursts in case.events.bursts.items()
        if owner == pod and hook == Hook.ETH and key in wires
        for found in bursts.values()
        for burst in found
    )


def _hello(attempt: Attempt) -> Packet | None:
    sent = attempt.sent()
    if sent and len(sent[0].data) > 5 and sent[0].data[0] == _HANDSHAKE and sent[0].data[5] == 1:
        return sent[0]
    return None


def _server_hello(attempt: Attempt) -> Packet | None:
    return next((p for p in attempt.received() if is_server_hello(p.data)), None)


def _refusal(case: Case, attempt: Attempt, speaks_tls: bool) -> _Refusal | None:
    hello = _hello(attempt)
    if hello is None:
        return _plaintext(case, attempt, speaks_tls)
    received = attempt.received()
    answer = _server_hello(attempt)
    if answer is None:
        if received and received[0].data[:1] and received[0].data[0] not in (20, 21, 22, 23):
            return _told(
                "tls.tls_to_plaintext_port",
                attempt,
                received[0],
                "answered a ClientHello with what is no TLS",
                f"{attempt.target} speaks plaintext at {attempt.port}",
            )
        if (alert := _clear_alert(received)) is not None:
            return _alerted(attempt, alert, by=attempt.target, whose=attempt.pod)
        end = attempt.end()
        if end is not None and end.direction == Direction.RX:
            word = "RST" if end.tcp_flags & RST else "FIN"
            return _told(
                "tls.handshake_failed",
                attempt,
                end,
                f"{word} in answer to a ClientHello",
                "no TLS came about",
            )
        return None
    flight = [p for p in attempt.sent() if p.ts_ns > answer.ts_ns]
    if (alert := _clear_alert(flight)) is not None:
        # It has seen the server's certificate, so that is what it is about, whatever it calls it.
        refusal = _alerted(attempt, alert, by=attempt.pod, whose=attempt.target)
        return refusal if refusal.identifier in _SURE else refusal._replace(identifier=_UNSURE)
    mine = _encrypted(flight)
    if mine and mine[0] == _ALERT_RECORD_BYTES:
        words = f"an encrypted alert ({_ALERT_RECORD_BYTES} bytes) in place of its Finished"
        return _Refusal(
            _UNSURE,
            attempt.pod,
            attempt.target,
            Moment(
                ts_ns=flight[0].ts_ns,
                pod=attempt.pod,
                event=f"sent {attempt.target}:{attempt.port} {words}",
                shows=f"{attempt.pod} refuses {attempt.target}'s certificate",
            ),
        )
    if not flight:
        return None
    return _by_server(attempt, flight, mine, received)


def _by_server(
    attempt: Attempt, flight: Sequence[Packet], mine: Sequence[int], received: Sequence[Packet]
) -> _Refusal | None:
    """What the server says to the client's flight."""
    after = [p for p in received if p.ts_ns > flight[0].ts_ns]
    if (alert := _clear_alert(after)) is not None:
        refusal = _alerted(attempt, alert, by=attempt.target, whose=attempt.pod)
        # TLS 1.2 has no alert of its own for it (RFC 5246, 7.4.6), and a cipher is agreed on by then.
        missing = alert[1] == _HANDSHAKE_FAILURE
        return refusal._replace(identifier="tls.no_client_certificate") if missing else refusal
    theirs = _encrypted(after)
    end = attempt.end()
    refused = bool(theirs) and theirs[0] == _ALERT_RECORD_BYTES
    silent = not theirs and end is not None and end.direction == Direction.RX
    if not refused and not silent:
        return None
    empty = bool(mine) and mine[0] in _EMPTY_CERTIFICATE_BYTES
    how = (
        f"an encrypted alert ({_ALERT_RECORD_BYTES} bytes)"
        if refused
        else "a close (FIN or RST), without another word,"
    )
    at_ns = next(
        (p.ts_ns for p in after if _encrypted([p])), end.ts_ns if end is not None else flight[0].ts_ns
    )
    shows = f"{attempt.target} refuses {attempt.pod}'s certificate"
    if empty:
        shows = f"{attempt.pod} showed none ({mine[0]} bytes of Certificate), and {attempt.target} wants one"
    return _Refusal(
        "tls.no_client_certificate" if empty else "tls.bad_certificate",
        attempt.target,
        attempt.pod,
        Moment(
            ts_ns=at_ns,
            pod=attempt.target,
            event=f"answered {attempt.pod}'s Finished with {how}",
            shows=shows,
        ),
    )


def _plaintext(case: Case, attempt: Attempt, speaks_tls: bool) -> _Refusal | None:
    sent, received = attempt.sent(), attempt.received()
    if not sent or attempt.is_local:
        return None
    alert = bool(received) and received[0].data[:1] == bytes([_ALERT])
    end = attempt.end()
    closed = not received and end is not None and end.direction == Direction.RX
    container = case.listeners.get((attempt.target, attempt.port))
    behind = container is not None and container == case.sidecars.get(attempt.target)
    if not alert and not (closed and (speaks_tls or behind)):
        return None
    how = "a TLS alert" if alert else "a close"
    at = received[0] if alert else end
    assert at is not None
    first = sent[0].data[:3].decode("ascii", "replace")
    shows = f"{attempt.target} expects TLS at {attempt.port}"
    return _told(
        "tls.plaintext_to_tls_port", attempt, at, f"answered plaintext ({first!r}...) with {how}", shows
    )


def _told(identifier: str, attempt: Attempt, packet: Packet, event: str, shows: str) -> _Refusal:
    moment = Moment(
        ts_ns=packet.ts_ns, pod=attempt.target, event=f"{event} (from {attempt.pod})", shows=shows
    )
    return _Refusal(identifier, attempt.target, attempt.pod, moment)


def _alerted(attempt: Attempt, alert: tuple[Packet, int], *, by: str, whose: str) -> _Refusal:
    packet, description = alert
    moment = Moment(
        ts_ns=packet.ts_ns,
        pod=by,
        event=f"TLS alert {description} in clear to {whose}",
        shows=f"{by} refuses the handshake",
    )
    return _Refusal(alert_cause(description), by, whose, moment)


def _clear_alert(packets: Sequence[Packet]) -> tuple[Packet, int] | None:
    for packet in packets:
        data = packet.data
        if len(data) >= 7 and data[0] == _ALERT and struct.unpack_from(">H", data, 3)[0] == 2:
            return packet, data[6]
    return None


def _encrypted(packets: Sequence[Packet]) -> list[int]:
    """The lengths of the encrypted records, in the order of the stream."""
    return [length for packet in packets for kind, length in packet.tls_headers if kind == _DATA]


def _cause(case: Case, pod: str, target: str, refusals: Sequence[_Refusal]) -> Cause:
    first = refusals[0]
    identifier, why, moments = first.identifier, "", [one.moment for one in refusals[:_FEW]]
    until_unix_s: float | None = None
    if identifier == "tls.bad_certificate":
        identifier, why, until_unix_s = _reason(case, first)
    elif identifier in ("tls.expired_certificate", "tls.unknown_ca"):
        until_unix_s = _validity(_certificate(case, first.whose))
    certificate = _certificate(case, first.whose)
    if (said := _proxy_line(case, first.by)) is not None:
        at_ns = moments[-1].ts_ns
        moments.append(
            Moment(ts_ns=at_ns, pod=first.by, event=f"its proxy's log: {said[:200]}", shows="its own words")
        )
    names = f" ({', '.join(certificate['names'][:2])})" if certificate and certificate["names"] else ""
    words = {
        "tls.no_client_certificate": f"{pod} shows {target} no certificate, and {target} requires one",
        "tls.plaintext_to_tls_port": f"{pod} speaks plaintext to {target}, which expects TLS",
        "tls.tls_to_plaintext_port": f"{pod} speaks TLS to {target}, which speaks plaintext there",
        "tls.version_mismatch": f"{pod} and {target} have no TLS version in common",
        "tls.cipher_mismatch": f"{pod} and {target} have no TLS cipher in common",
        "tls.handshake_failed": f"the TLS handshake of {pod} with {target} fails",
    }.get(identifier, f"{first.by} refuses {first.whose}'s certificate{names}{why}")
    return cause_of(
        identifier,
        summary=words,
        strength=0.75 if identifier in ("tls.handshake_failed", "tls.bad_certificate") else 0.95,
        moments=tuple(sorted(moments)),
        remedial=Remedial(words=_remedy(identifier, first, pod, target)),
        pods=(first.whose,),
        component="tls_handshake",
        details={
            "refused_by": first.by,
            "certificate_of": first.whose,
            **({"not_after_unix_s": until_unix_s} if until_unix_s is not None else {}),
        },
    )


def _remedy(identifier: str, first: _Refusal, pod: str, target: str) -> str:
    return {
        "tls.expired_certificate": f"renew {first.whose}'s certificate",
        "tls.not_yet_valid_certificate": f"set {first.by}'s clock, or issue {first.whose}'s certificate anew",
        "tls.unknown_ca": f"let the authority that {first.by} trusts sign {first.whose}'s certificate "
        f"(or give {first.by} that authority)",
        "tls.wrong_name": f"issue {first.whose}'s certificate for the name that {first.by} asks for",
        "tls.no_client_certificate": f"give {pod}'s proxy its certificate (Secret, `crt`)",
        "tls.plaintext_to_tls_port": f"let {pod} go through its sidecar, or speak TLS",
        "tls.tls_to_plaintext_port": f"let {target} speak TLS at that port, or {pod} plaintext",
        "tls.version_mismatch": "let both ends allow a common TLS version",
        "tls.cipher_mismatch": "let both ends allow a common cipher (or group)",
    }.get(
        identifier,
        f"compare {first.whose}'s certificate and {first.by}'s settings; the proxies' logs say more",
    )


def _certificate(case: Case, pod: str) -> Mapping[str, Any] | None:
    recorded = case.run.meta.get("facts", {}).get("certificates", ())
    return next((one for one in recorded if one["pod"] == pod), None)


def _validity(certificate: Mapping[str, Any] | None) -> float | None:
    return None if certificate is None else float(certificate["not_after_unix_s"])


def _reason(case: Case, refusal: _Refusal) -> tuple[str, str, float | None]:
    """Why a certificate was refused, by what it says, or by what the one who refused it wrote down."""
    certificate = _certificate(case, refusal.whose)
    now_s = case.clock.unix_ns(refusal.moment.ts_ns) / 1e9
    if certificate is not None:
        not_before, not_after = certificate["not_before_unix_s"], certificate["not_after_unix_s"]
        if now_s > not_after:
            return "tls.expired_certificate", f": it was valid until {_date(not_after)}", not_after
        if now_s < not_before:
            return "tls.not_yet_valid_certificate", f": it is valid from {_date(not_before)}", not_after
        if refusal.by not in certificate["trusted_by"]:
            who = f": {refusal.by} does not know its authority ({certificate['issuer']})"
            return "tls.unknown_ca", who, not_after
        asked = _asked_name(case, refusal)
        if asked and asked not in certificate["names"]:
            return "tls.wrong_name", f": it is not for {asked}", not_after
        if asked:  # whose date and authority are right: what a client verifies besides is the name
            return (
                "tls.wrong_name",
                ": it is in date and its authority is known; what is left is its name",
                not_after,
            )
    line = _proxy_line(case, refusal.by) or ""
    if (code := re.search(r'"verify_error":(\d+)', line)) and int(code[1]) in _VERIFY_ERRORS:
        return _VERIFY_ERRORS[int(code[1])], f": its proxy's verify error is {code[1]}", None
    return "tls.bad_certificate", "", None


def _date(unix_s: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _asked_name(case: Case, refusal: _Refusal) -> str | None:
    """The server's name in the client's hello (RFC 6066), if the server's certificate was refused."""
    for attempt in case.attempts:
        if attempt.pod == refusal.by and attempt.target == refusal.whose and (hello := _hello(attempt)):
            return _server_name(hello.data)
    return None


def _server_name(data: bytes) -> str | None:
    try:
        at = 9 + 2 + 32
        at += 1 + data[at]
        at += 2 + struct.unpack_from(">H", data, at)[0]
        at += 1 + data[at] + 2
        while at + 4 <= len(data):
            kind, length = struct.unpack_from(">HH", data, at)
            if kind == 0:
                size = struct.unpack_from(">H", data, at + 7)[0]
                return data[at + 9 : at + 9 + size].decode("ascii")
            at += 4 + length
    except (struct.error, IndexError, UnicodeDecodeError):
        pass
    return None


def _proxy_line(case: Case, pod: str) -> str | None:
    line = case.log_line(pod, '"tls_error":"error', '"verify_error":', "certificate verify failed")
    if line is None:
        return None
    try:
        said = json.loads(line)
    except ValueError:
        return line
    keep = ("error", "tls_error", "verify_error", "peer")
    return json.dumps({key: said[key] for key in keep if said.get(key)}, separators=(",", ":"))
