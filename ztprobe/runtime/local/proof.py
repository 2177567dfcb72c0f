"""Show, before round 1, that the security level's controls are in force, or are absent.

A control counts as proven when what it must let through passes *and* what it must
stop is stopped by it. A connection that merely fails proves nothing (the port could
be closed), so for a policy the filter's own record of the dropped flow must have
grown, and for mutual TLS the server's proxy must have logged the identity it
verified. Probes start from inside the pods, run at the same time, and take two
seconds at most when nothing is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ztprobe.pods.model import Pod
from ztprobe.runtime.attempts import CONNECTED, REFUSED, SILENT, connect, socket_in
from ztprobe.runtime.interface import Enforcement, Proof
from ztprobe.runtime.local import dns, firewall

__all__ = ("ProofScene", "prove", "prove_policies", "prove_sidecar")

# Silence for longer than any profile's round trip (net4: 0.3 s) and than a retransmitted
# SYN takes to be answered (1 s + 0.3 s).
_SILENCE_S = 1.5
# Room for two lost packets in a row where an answer is due.
_ANSWER_S = 6.0
# For a verdict that comes in one segment, which may have to be sent twice.
_VERDICT_S = 3.0
_LOG_S = 3.0
_CLOSED_PORT_OFFSET = 1  # next to the server's port; nothing listens there
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
_TLS_ALERT = 0x15


@dataclass(frozen=True, kw_only=True)
class ProofScene:
    """Where to prove what."""

    node: Path
    server: Pod
    clients: tuple[Pod, ...]
    dns: Pod
    outsider: Pod  # neither a client nor in their namespace
    # One that has to go through the clients, which are edge aggregators and listen; None: there is none such.
    stranger: Pod | None = None
    service_name: str
    port: int
    loopback_port: int | None  # the server's application behind its sidecar
    policy: bool
    # the clients' certificate directory and one of another account's, None without mutual TLS
    certificates: tuple[Path, Path] | None
    client_identity: str
    server_identity: str
    server_proxy_log: Path


def prove(scenes: Sequence[ProofScene]) -> Enforcement:
    """Run every probe of the level; whether a control is in force is in what they found.

    :param scenes: of one node and one level, at least one.
    """
    scene = scenes[0]
    checks = [check for each in scenes for check in _policy_checks(each)]
    tls_checks = [
        check
        for each in scenes
        if each.certificates is not None
        for check in _tls_checks(each, *each.certificates)
    ]
    before = firewall.dropped(scene.node) if scene.policy else {}
    with ThreadPoolExecutor(max_workers=len(checks) + len(tls_checks)) as pool:
        futures = [pool.submit(check.run) for check in (*checks, *tls_checks)]
        observed = [future.result() for future in futures]
    after = firewall.dropped(scene.node) if scene.policy else {}
    proofs = [check.judge(seen, before, after) for check, seen in zip(checks, observed, strict=False)]
    tls_proofs = [
        check.judge(seen, before, after)
        for check, seen in zip(tls_checks, observed[len(checks) :], strict=True)
    ]
    if tls_checks:
        tls_proofs += [_server_saw_identity(each) for each in scenes]
    return Enforcement(
        network_policy_expected=scene.policy,
        mtls_expected=scene.certificates is not None,
        network_policy=tuple(proofs),
        mtls=tuple(tls_proofs),
    )


def prove_policies(scene: ProofScene) -> Proof:
    """Knock at the server's port from a pod that no policy lets in, whose packets no round waits for."""
    check = _tcp(
        f"{'forbidden' if scene.policy else 'open without policy'}: {scene.outsider.name} ->"
        f" {scene.server.name}:{scene.port}/tcp",
        scene.outsider,
        scene.server,
        scene.port,
        CONNECTED,
        blocked=scene.policy,
    )
    before = firewall.dropped(scene.node)
    return check.judge(check.run(), before, firewall.dropped(scene.node))


def prove_sidecar(scene: ProofScene) -> list[Proof]:
    """Speak to the server's sidecar from the outsider, before policies keep that out."""
    if scene.certificates is None:
        return []
    own, foreign = scene.certificates
    checks = _tls_checks(dataclasses.replace(scene, clients=(scene.outsider,)), own, foreign, "the clients'")
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        observed = list(pool.map(lambda check: check.run(), checks))
    return [check.judge(seen, {}, {}) for check, seen in zip(checks, observed, strict=True)]


@dataclass(frozen=True, kw_only=True)
class _Check:
    name: str
    expected: str
    run: Callable[[], str]
    passes: Callable[[str], bool]
    # the filter must have dropped packets of this flow meanwhile
    flow: firewall.Flow | None = None

    def judge(self, seen: str, before: dict[firewall.Flow, int], after: dict[firewall.Flow, int]) -> Proof:
        passed = self.passes(seen)
        if self.flow is not None:
            packets = after.get(self.flow, 0) - before.get(self.flow, 0)
            seen += f", {packets} packets dropped by the policy"
            passed = passed and packets > 0
        return Proof(name=self.name, expected=self.expected, observed=seen, passed=passed)


def _policy_checks(scene: ProofScene) -> list[_Check]:
    client, server = scene.clients[0], scene.server
    checks = [
        _tcp(
            f"allowed: {client.name} -> {server.name}:{scene.port}/tcp", client, server, scene.port, CONNECTED
        ),
        _Check(
            name=f"allowed: {client.name} -> {scene.dns.name}:53/udp",
            expected=f"{scene.service_name} is {server.address}",
            run=lambda: _resolve(client, scene),
            passes=lambda seen: seen == f"{scene.service_name} is {server.address}",
        ),
        _tcp(f"allowed: {client.name} -> {scene.dns.name}:53/tcp", client, scene.dns, 53, CONNECTED),
    ]
    closed = scene.port + _CLOSED_PORT_OFFSET
    attempts = [(client, server, closed, REFUSED), (scene.outsider, server, scene.port, CONNECTED)]
    if len(scene.clients) > 1:
        unhindered = REFUSED if scene.stranger is None else CONNECTED
        attempts.append((client, scene.clients[1], scene.port, unhindered))
    if scene.stranger is not None:
        attempts.append((scene.stranger, server, scene.port, CONNECTED))
    word = "forbidden" if scene.policy else "open without policy"
    for source, target, port, open_answer in attempts:
        name = f"{word}: {source.name} -> {target.name}:{port}/tcp"
        checks.append(_tcp(name, source, target, port, open_answer, blocked=scene.policy))
    return checks


def _tcp(name: str, source: Pod, target: Pod, port: int, unhindered: str, blocked: bool = False) -> _Check:
    expected = SILENT if blocked else unhindered
    return _Check(
        name=name,
        expected=f"{SILENT}, dropped by the policy" if blocked else expected,
        run=lambda: connect(source, target.address, port, _SILENCE_S if blocked else _ANSWER_S),
        passes=lambda seen: seen == expected,
        flow=firewall.Flow(source.address, target.address, "tcp", port) if blocked else None,
    )


def _tls_checks(scene: ProofScene, own: Path, foreign: Path, whose: str = "its") -> list[_Check]:
    client, application_port = scene.clients[0], scene.loopback_port or 0
    return [
        _Check(
            name=f"{client.name} with {whose} certificate -> {scene.server.name}:{scene.port}",
            expected=f"TLSv1.3 with {scene.server_identity}, accepted",
            run=lambda: _handshake(scene, client, own, own),
            passes=lambda seen: seen == f"TLSv1.3 with {scene.server_identity}, accepted",
        ),
        _Check(
            name=f"{client.name} without a certificate -> {scene.server.name}:{scene.port}",
            expected="refused: certificate required",
            run=lambda: _handshake(scene, client, own, None),
            passes=lambda seen: "certificate required" in seen and seen.startswith("refused"),
        ),
        _Check(
            name=f"{client.name} with another account's certificate -> {scene.server.name}:{scene.port}",
            expected="closed before any answer",
            run=lambda: _handshake(scene, client, own, foreign),
            passes=lambda seen: seen.startswith(("closed", "refused")),
        ),
        _Check(
            name=f"{client.name} in plain HTTP/2 -> {scene.server.name}:{scene.port}",
            expected="no HTTP/2 answer",
            run=lambda: _plaintext(client, scene.server, scene.port),
            passes=lambda seen: seen.startswith("no HTTP/2 answer"),
        ),
        _Check(
            name=f"{client.name} past the sidecar -> {scene.server.name}:{application_port}",
            expected=f"{REFUSED} or {SILENT}",
            run=lambda: connect(client, scene.server.address, application_port, _SILENCE_S),
            passes=lambda seen: seen in (REFUSED, SILENT),
        ),
    ]


def _resolve(pod: Pod, scene: ProofScene) -> str:
    # UDP is not repeated by anyone but us: one lost datagram must not fail the proof.
    for _ in range(3):
        try:
            answers = dns.query(pod.netns, scene.dns.address, scene.service_name, _SILENCE_S)
        except TimeoutError:
            continue
        return f"{scene.service_name} is {', '.join(answers) or 'unknown'}"
    return SILENT


def _handshake(scene: ProofScene, pod: Pod, trust: Path, certificate: Path | None) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(trust / "ca.crt")
    if certificate is not None:
        context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
    with socket_in(pod, _ANSWER_S) as raw:
        try:
            raw.connect((scene.server.address, scene.port))
            with context.wrap_socket(raw, server_hostname=scene.service_name) as tls:
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


def _server_saw_identity(scene: ProofScene) -> Proof:
    # The proxy writes its line when the connection has closed, a round trip after we did.
    deadline = time.monotonic() + _LOG_S
    seen = "no such connection in the proxy's log"
    while True:
        for line in (
            scene.server_proxy_log.read_text().splitlines() if scene.server_proxy_log.exists() else ()
        ):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("peer_identity") == scene.client_identity and entry.get("tls"):
                seen = f"{entry['tls']} with {entry['peer_identity']}"
        passed = seen == f"TLSv1.3 with {scene.client_identity}"
        if passed or time.monotonic() > deadline:
            return Proof(
                name=f"{scene.server.name}'s proxy verified {scene.clients[0].name}",
                expected=f"TLSv1.3 with {scene.client_identity}",
                observed=seen,
                passed=passed,
            )
        time.sleep(0.02)
