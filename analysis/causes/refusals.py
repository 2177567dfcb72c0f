"""TLS handshakes that did not come about, read record by record: who refused whose certificate, or what else.

What TLS 1.3 hides shows in the sizes of its records (RFC 8446, 5.2 and 6): an alert is two bytes, so its
record has 19, a Finished alone has 53 or 69, a Certificate message without a certificate 25, and one with
a certificate several hundred. Who sends the alert refuses the other's certificate.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from analysis.causes.attempts import Attempt
from analysis.causes.case import Case
from analysis.causes.findings import Moment
from analysis.evidence.values import RST, Packet
from analysis.ledger.handshakes import is_server_hello
from ztprobe.events.kinds import Direction

__all__ = ("UNSURE", "Refusal", "alert_cause", "hello_of", "refusal_of", "server_hello_of")

_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE, _DATA = 20, 21, 22, 23
_HANDSHAKE_FAILURE = 40
_ALERT_RECORD_BYTES = 2 + 1 + 16
_EMPTY_CERTIFICATE_BYTES = range(20, 34)
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
_SURE = ("tls.expired_certificate", "tls.unknown_ca")
UNSURE = "tls.bad_certificate"  # why has to be found out


class Refusal(NamedTuple):
    identifier: str  # bad_certificate: why has to be found out
    by: str  # who refused; "" where nobody said anything
    whose: str  # the certificate's pod
    moment: Moment


def alert_cause(description: int) -> str:
    """What an alert in clear says."""
    return _ALERTS.get(description, "tls.handshake_failed")


def hello_of(attempt: Attempt) -> Packet | None:
    sent = attempt.sent()
    if sent and len(sent[0].data) > 5 and sent[0].data[0] == _HANDSHAKE and sent[0].data[5] == 1:
        return sent[0]
    return None


def server_hello_of(attempt: Attempt) -> Packet | None:
    return next((p for p in attempt.received() if is_server_hello(p.data)), None)


def refusal_of(case: Case, attempt: Attempt, speaks_tls: bool) -> Refusal | None:
    hello = hello_of(attempt)
    if hello is None:
        return _plaintext(case, attempt, speaks_tls)
    received = attempt.received()
    answer = server_hello_of(attempt)
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
        return refusal if refusal.identifier in _SURE else refusal._replace(identifier=UNSURE)
    mine = _encrypted(flight)
    if mine and mine[0] == _ALERT_RECORD_BYTES:
        words = f"an encrypted alert ({_ALERT_RECORD_BYTES} bytes) in place of its Finished"
        return Refusal(
            UNSURE,
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
) -> Refusal | None:
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
    return Refusal(
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


def _plaintext(case: Case, attempt: Attempt, speaks_tls: bool) -> Refusal | None:
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


def _told(identifier: str, attempt: Attempt, packet: Packet, event: str, shows: str) -> Refusal:
    moment = Moment(
        ts_ns=packet.ts_ns, pod=attempt.target, event=f"{event} (from {attempt.pod})", shows=shows
    )
    return Refusal(identifier, attempt.target, attempt.pod, moment)


def _alerted(attempt: Attempt, alert: tuple[Packet, int], *, by: str, whose: str) -> Refusal:
    packet, description = alert
    moment = Moment(
        ts_ns=packet.ts_ns,
        pod=by,
        event=f"TLS alert {description} in clear to {whose}",
        shows=f"{by} refuses the handshake",
    )
    return Refusal(alert_cause(description), by, whose, moment)


def _clear_alert(packets: Sequence[Packet]) -> tuple[Packet, int] | None:
    for packet in packets:
        data = packet.data
        if len(data) >= 7 and data[0] == _ALERT and struct.unpack_from(">H", data, 3)[0] == 2:
            return packet, data[6]
    return None


def _encrypted(packets: Sequence[Packet]) -> list[int]:
    """The lengths of the encrypted records, in the order of the stream."""
    return [length for packet in packets for kind, length in packet.tls_headers if kind == _DATA]
