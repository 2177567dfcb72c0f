"""Connection set-up, read from the packets that a pod sent and received: TCP, TLS, HTTP/2, DNS.

Everything is taken at the connecting pod's own interface, so an interval is what
that pod waited. TLS 1.3 hides who says what after ServerHello: the client's
Finished flight is inferred from record order (the first records that the client
sends after the server's encrypted flight) and whether a client certificate flew
from that flight's size (RFC 8446, section 4.4: a Finished alone is one record of
under 100 bytes; a certificate and its signature need several hundred).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.evidence.values import ACK, DnsMessage, Packet
from ztprobe.events.kinds import Direction

__all__ = ("DnsQuery", "Setup", "TlsHandshake", "dns_queries", "is_server_hello", "read_setup")

_HANDSHAKE, _CHANGE_CIPHER_SPEC, _ALERT, _APPLICATION_DATA = 22, 20, 21, 23
_SUPPORTED_VERSIONS, _PRE_SHARED_KEY, _KEY_SHARE = 43, 41, 51
_SERVER_HELLO, _CERTIFICATE = 2, 11
# A ServerHello with this random is a HelloRetryRequest (RFC 8446, 4.1.3): the client says hello again.
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
# A TLS 1.3 Finished record: 4 + 32..48 bytes of HMAC, 1 content type, 16 tag (RFC 8446, 4.4.4 and 5.2).
_FINISHED_MAX_BYTES = 100


@dataclass(frozen=True, kw_only=True)
class TlsHandshake:
    """One TLS handshake at the client's interface; times are CLOCK_MONOTONIC nanoseconds."""

    client_hello_ns: int
    server_hello_ns: int | None
    finished_ns: int | None  # first packet of the client's Finished flight
    version: str | None
    resumed: bool
    mutual: str  # yes | no | not shown again | unknown
    alert: bool


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How one TCP connection came about, at the connecting pod's interface."""

    syn_ns: int
    syn_count: int
    established_ns: int | None
    tls: TlsHandshake | None
    # the server's first HTTP/2 bytes (SETTINGS): gRPC sends no request before
    settings_ns: int | None

    @property
    def ready_ns(self) -> int | None:
        """When transport security was done: the connection could carry HTTP/2."""
        return self.tls.finished_ns if self.tls else self.established_ns


@dataclass(frozen=True, kw_only=True)
class DnsQuery:
    """A question and its answer at the asking pod's interface."""

    pod: str
    name: str
    asked_ns: int
    answered_ns: int | None
    rcode: int | None


def _hello(data: bytes) -> tuple[int, bool]:
    """(version, pre-shared key accepted) of a ServerHello; legacy version where no extension says more."""
    version = int(struct.unpack_from(">H", data, 9)[0])
    at = 9 + 2 + 32
    at += 1 + data[at] + 2 + 1  # session id, cipher suite, compression
    resumed = False
    end = min(len(data), at + 2 + struct.unpack_from(">H", data, at)[0])
    at += 2
    while at + 4 <= end:
        kind, length = struct.unpack_from(">HH", data, at)
        if kind == _KEY_SHARE:
            # 1.3 only; a post-quantum share may push supported_versions out of what was kept
            version = 0x0304
        elif kind == _SUPPORTED_VERSIONS:
            version = struct.unpack_from(">H", data, at + 4)[0]
        resumed = resumed or kind == _PRE_SHARED_KEY
        at += 4 + length
    return version, resumed


def is_server_hello(data: bytes) -> bool:
    """Whether a payload begins with a ServerHello (and not with a HelloRetryRequest)."""
    return len(data) > 50 and data[0] == _HANDSHAKE and data[5] == _SERVER_HELLO and data[11:43] != _RETRY


def _read_tls(payloads: Sequence[Packet]) -> TlsHandshake | None:
    client = [p for p in payloads if p.direction == Direction.TX]
    server = [p for p in payloads if p.direction == Direction.RX]
    if not client or len(client[0].data) < 6 or client[0].data[0] != _HANDSHAKE or client[0].data[5] != 1:
        return None
    hello_ns = client[0].ts_ns
    answer = next((p for p in server if is_server_hello(p.data)), None)
    alert = any(kind == _ALERT for p in payloads for kind, _ in p.tls_headers)
    if answer is None:
        return TlsHandshake(
            client_hello_ns=hello_ns,
            server_hello_ns=None,
            finished_ns=None,
            version=None,
            resumed=False,
            mutual="unknown",
            alert=alert,
        )
    try:
        number, resumed = _hello(answer.data)
    except (struct.error, IndexError):
        number, resumed = 0, False
    version = {0x0304: "1.3", 0x0303: "1.2", 0x0302: "1.1", 0x0301: "1.0"}.get(number)
    # The ClientHello may span packets; the flight that answers the server begins after ServerHello.
    flight = [p for p in client if p.ts_ns > answer.ts_ns]
    finished_ns = flight[0].ts_ns if flight else None
    reply = [r for p in flight for r in p.tls_headers]
    if version == "1.3":
        # Some libraries send ChangeCipherSpec in a packet of its own.
        encrypted = [length for kind, length in reply if kind == _APPLICATION_DATA]
        mutual = "unknown" if not encrypted else "yes" if encrypted[0] > _FINISHED_MAX_BYTES else "no"
    else:
        # TLS 1.2: Certificate is message type 11, in clear.
        data = flight[0].data if flight else b""
        # A client without one answers a request with an empty list of certificates.
        shown = len(data) >= 9 and data[5] == _CERTIFICATE and data[6:9] != b"\0\0\3"
        mutual = "unknown" if len(data) < 9 else "yes" if shown else "no"
        resumed = bool(reply) and reply[0][0] == _CHANGE_CIPHER_SPEC
    if resumed:
        mutual = "not shown again"
    return TlsHandshake(
        client_hello_ns=hello_ns,
        server_hello_ns=answer.ts_ns,
        finished_ns=finished_ns,
        version=version,
        resumed=resumed,
        mutual=mutual,
        alert=alert,
    )


def read_setup(packets: Sequence[Packet]) -> Setup | None:
    """From one connection's packets at the connecting pod, in time order."""
    payloads = [p for p in packets if p.kind == "payload"]
    syns = [p for p in packets if p.direction == Direction.TX and p.opens and not p.tcp_flags & ACK]
    if not syns:
        return None
    answer = next((p for p in packets if p.direction == Direction.RX and p.opens and p.tcp_flags & ACK), None)
    tls = _read_tls(payloads)
    ready_ns = tls.finished_ns if tls else answer.ts_ns if answer else None
    settings = None
    if ready_ns is not None:
        answers = [p for p in payloads if p.direction == Direction.RX and p.ts_ns > ready_ns]
        # Packets may overtake each other; what the client can read first is the lowest sequence number.
        settings = min(answers, key=lambda p: (p.seq - answers[0].seq + (1 << 31)) & 0xFFFFFFFF, default=None)
    return Setup(
        syn_ns=syns[0].ts_ns,
        syn_count=len(syns),
        established_ns=answer.ts_ns if answer else None,
        tls=tls,
        settings_ns=settings.ts_ns if settings is not None else None,
    )


def _question(data: bytes) -> str:
    """The name asked for (RFC 1035, 4.1.2: labels, no compression in a question)."""
    labels, at = [], 12
    while at < len(data) and data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode("ascii", "replace"))
        at += 1 + data[at]
    return ".".join(labels)


def dns_queries(messages: Sequence[DnsMessage]) -> list[DnsQuery]:
    """Match questions with answers by pod, port and id (in time order)."""
    open_queries: dict[tuple[str, int, int, str], int] = {}
    found: list[DnsQuery] = []
    for packet in messages:
        if len(packet.data) < 17:
            continue
        ident, flags = struct.unpack_from(">HH", packet.data)
        name = _question(packet.data)
        key = (packet.pod, packet.local_port, ident, name)
        if packet.direction == Direction.TX and not flags >> 15:
            open_queries.setdefault(key, packet.ts_ns)
        elif packet.direction == Direction.RX and flags >> 15 and key in open_queries:
            asked_ns = open_queries.pop(key)
            found.append(
                DnsQuery(
                    pod=packet.pod,
                    name=name,
                    asked_ns=asked_ns,
                    answered_ns=packet.ts_ns,
                    rcode=flags & 15,
                )
            )
    for (pod, _, _, name), asked_ns in open_queries.items():
        found.append(DnsQuery(pod=pod, name=name, asked_ns=asked_ns, answered_ns=None, rcode=None))
    return sorted(found, key=lambda q: q.asked_ns)
