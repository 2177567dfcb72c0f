"""Handshakes tried with the server's sidecar: with the right certificate, with wrong ones, with none.

A control counts as proven when what it must let through passes *and* what it must stop is stopped by it. The
server's proxy says whom it let in.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ztprobe.pods.model import Pod
from ztprobe.runtime.attempts import (
    CLOSED,
    CONNECTED,
    HERE,
    REFUSED,
    RESET,
    SILENT,
    PodNetworks,
    ProofAttempt,
    Stream,
    connect,
)
from ztprobe.runtime.interface import Proof

__all__ = ("TlsWay", "saw_identity", "tls_attempts")

# As long as any profile's round trip, a retransmitted SYN included.
_SILENCE_S = 1.5
# Room for two lost packets in a row where an answer is due.
_ANSWER_S = 6.0
# For a verdict that comes in one segment, which may have to be sent twice.
_VERDICT_S = 3.0
_LOG_S = 3.0
_AGAIN_S = 0.02
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
_TLS_ALERT = 0x15
_NOBODY_LISTENS = "Connection refused"  # which is no refusal of a certificate

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class TlsWay:
    """From a client's pod to the server's sidecar.

    Certificates are directories with tls.crt, tls.key and ca.crt.
    """

    client: Pod
    server: Pod
    port: int
    application_port: int  # behind the sidecar
    service_name: str  # that the server's certificate has to be good for
    server_identity: str
    own: Path  # the client's
    whose: str = "its"
    foreign: Mapping[str, Path] = field(default_factory=dict)  # whose -> one that must not do
    networks: PodNetworks = HERE


def tls_attempts(way: TlsWay) -> list[ProofAttempt]:
    """All that is to be tried."""
    to = f"{way.server.name}:{way.port}"
    accepted = f"TLSv1.3 with {way.server_identity}, accepted"
    return [
        ProofAttempt(
            name=f"{way.client.name} with {way.whose} certificate -> {to}",
            expected=accepted,
            run=lambda: _handshake(way, way.own),
            passes=lambda seen: seen == accepted,
        ),
        ProofAttempt(
            name=f"{way.client.name} without a certificate -> {to}",
            expected="refused: certificate required",
            run=lambda: _handshake(way, None),
            passes=lambda seen: "certificate required" in seen and seen.startswith("refused"),
        ),
        *(
            ProofAttempt(
                name=f"{way.client.name} with {whose} certificate -> {to}",
                expected="closed before any answer",
                run=lambda directory=directory: _handshake(way, directory),  # type: ignore[misc]
                passes=lambda seen: seen.startswith(("closed", "refused")),
            )
            for whose, directory in way.foreign.items()
        ),
        ProofAttempt(
            name=f"{way.client.name} in plain HTTP/2 -> {to}",
            expected="no HTTP/2 answer",
            run=lambda: _plaintext(way),
            passes=lambda seen: seen.startswith("no HTTP/2 answer"),
        ),
        ProofAttempt(
            name=f"{way.client.name} past the sidecar -> {way.server.name}:{way.application_port}",
            expected=f"{REFUSED} or {SILENT}",
            run=lambda: connect(
                way.client, way.server.address, way.application_port, _SILENCE_S, way.networks
            ),
            passes=lambda seen: seen in (REFUSED, SILENT),
        ),
    ]


def saw_identity(server: str, client: str, identity: str, log: Callable[[], str]) -> Proof:
    """Whether the server's sidecar says that it verified an identity.

    :param log: all that it has written by now.
    """
    # The proxy writes its line when the connection has closed, a round trip after we did.
    deadline = time.monotonic() + _LOG_S
    expected = f"TLSv1.3 with {identity}"
    seen = "no such connection in the proxy's log"
    while True:
        for line in log().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("peer_identity") == identity and entry.get("tls"):
                seen = f"{entry['tls']} with {identity}"
        if seen == expected or time.monotonic() > deadline:
            return Proof(
                name=f"{server}'s proxy verified {client}",
                expected=expected,
                observed=seen,
                passed=seen == expected,
            )
        time.sleep(_AGAIN_S)


def _handshake(way: TlsWay, certificate: Path | None) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(way.own / "ca.crt")
    if certificate is not None:
        context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
    with _dialled(way) as (said, stream):
        if stream is None:
            return said
        try:
            tls = _TlsStream(context, stream, way.service_name)
            tls.step(tls.object.do_handshake, _ANSWER_S)
            # A TLS 1.3 client is done before the server has judged its certificate: the
            # verdict is the first read. A server that accepts speaks first (HTTP/2 settings).
            peer, version = tls.object.getpeercert() or {}, tls.object.version()
            try:
                answered = tls.step(lambda: tls.object.read(1), _VERDICT_S) != b""
            except TimeoutError:
                answered = True
            except ssl.SSLEOFError:
                answered = False
        except ssl.SSLError as error:
            return f"refused: {(error.reason or str(error)).lower().replace('_', ' ')}"
        except ConnectionResetError:
            return RESET
        except OSError as error:
            return error.strerror or str(error) or type(error).__name__
    if not answered:
        return "closed without an answer"
    names: Sequence[tuple[str, str]] = peer.get("subjectAltName", ())  # type: ignore[assignment]
    identity = next((value for kind, value in names if kind == "URI"), "no identity")
    return f"{version} with {identity}, accepted"


@contextlib.contextmanager
def _dialled(way: TlsWay) -> Iterator[tuple[str, Stream | None]]:
    said, stream = way.networks.dial(way.client, way.server.address, way.port, _ANSWER_S)
    if stream is None:
        yield _NOBODY_LISTENS if said == REFUSED else said, None
        return
    with contextlib.closing(stream):
        yield CONNECTED, stream


class _TlsStream:
    """TLS over a stream: the records are made and read here, wherever the connection is."""

    def __init__(self, context: ssl.SSLContext, stream: Stream, name: str) -> None:
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    def step(self, work: Callable[[], _Result], timeout_s: float) -> _Result:
        """Have it done, with whatever has to come and go for it.

        :raises OSError: TimeoutError, ConnectionResetError, ssl.SSLError, or what the kernel says.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            try:
                result = work()
            except ssl.SSLWantReadError:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError(SILENT) from None
                received, why = self._stream.exchange(self._outgoing.read(), left_s)
                self._take(received, why)
                continue
            self._stream.exchange(self._outgoing.read(), 0.0)
            return result

    def _take(self, received: bytes, why: str) -> None:
        if received:
            self._incoming.write(received)
        elif why == CLOSED:
            self._incoming.write_eof()
        elif why == RESET:
            raise ConnectionResetError(why)
        else:
            raise TimeoutError(why) if why == SILENT else OSError(why)


def _plaintext(way: TlsWay) -> str:
    received = b""
    with _dialled(way) as (said, stream):
        if stream is None:
            return said
        more, why = stream.exchange(_HTTP2_PREFACE, _SILENCE_S)
        while more and len(received := received + more) < 9:
            more, why = stream.exchange(b"", _SILENCE_S)
        if why not in ("", SILENT, CLOSED, RESET):
            return why
    if not received:
        return "no HTTP/2 answer: closed or silent"
    return "no HTTP/2 answer: a TLS alert" if received[0] == _TLS_ALERT else f"answered {received[:9].hex()}"
