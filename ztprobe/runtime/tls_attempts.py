"""Handshakes tried with the server's sidecar: with the right certificate, with wrong ones, with none.

A control counts as proven when what it must let through passes *and* what it must stop is stopped by it. The
server's proxy says whom it let in.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ztprobe.pods.model import Pod
from ztprobe.runtime.attempts import REFUSED, SILENT, ProofAttempt, connect, socket_in
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
            run=lambda: _plaintext(way.client, way.server, way.port),
            passes=lambda seen: seen.startswith("no HTTP/2 answer"),
        ),
        ProofAttempt(
            name=f"{way.client.name} past the sidecar -> {way.server.name}:{way.application_port}",
            expected=f"{REFUSED} or {SILENT}",
            run=lambda: connect(way.client, way.server.address, way.application_port, _SILENCE_S),
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
    with socket_in(way.client, _ANSWER_S) as raw:
        try:
            raw.connect((way.server.address, way.port))
            with context.wrap_socket(raw, server_hostname=way.service_name) as tls:
                # A TLS 1.3 client is done before the server has judged its certificate: the
                # verdict is the first read. A server that accepts speaks first (HTTP/2 settings).
                peer, version = tls.getpeercert() or {}, tls.version()
                tls.settimeout(_VERDICT_S)
                try:
                    answered = tls.recv(1) != b""
                except TimeoutError:
                    answered = True
        except ssl.SSLError as error:
            return f"refused: {(error.reason or str(error)).lower().replace('_', ' ')}"
        except ConnectionResetError:
            return "closed with a reset"
        except OSError as error:
            return error.strerror or str(error) or type(error).__name__
    if not answered:
        return "closed without an answer"
    names: Sequence[tuple[str, str]] = peer.get("subjectAltName", ())  # type: ignore[assignment]
    identity = next((value for kind, value in names if kind == "URI"), "no identity")
    return f"{version} with {identity}, accepted"


def _plaintext(pod: Pod, server: Pod, port: int) -> str:
    received = b""
    with socket_in(pod, _ANSWER_S) as sock:
        try:
            sock.connect((server.address, port))
            sock.settimeout(_SILENCE_S)
            sock.sendall(_HTTP2_PREFACE)
            while len(received) < 9 and (more := sock.recv(64)):
                received += more
        except ConnectionResetError:
            pass
        except TimeoutError:
            pass
        except OSError as error:
            return error.strerror or str(error)
    if not received:
        return "no HTTP/2 answer: closed or silent"
    return "no HTTP/2 answer: a TLS alert" if received[0] == _TLS_ALERT else f"answered {received[:9].hex()}"
