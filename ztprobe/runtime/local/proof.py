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
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ztprobe.pods.model import Pod
from ztprobe.runtime.attempts import CONNECTED, REFUSED, SILENT, ProofAttempt, connect
from ztprobe.runtime.interface import Enforcement, Proof
from ztprobe.runtime.local import dns, firewall
from ztprobe.runtime.tls_attempts import TlsWay, saw_identity, tls_attempts

__all__ = ("ProofScene", "prove", "prove_policies", "prove_sidecar")

# Silence for longer than any profile's round trip (net4: 0.3 s) and than a retransmitted
# SYN takes to be answered (1 s + 0.3 s).
_SILENCE_S = 1.5
# Room for two lost packets in a row where an answer is due.
_ANSWER_S = 6.0
_CLOSED_PORT_OFFSET = 1  # next to the server's port; nothing listens there


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
    tls_proofs = [check.judged(seen) for check, seen in zip(tls_checks, observed[len(checks) :], strict=True)]
    if tls_checks:
        tls_proofs += [
            saw_identity(
                each.server.name,
                each.clients[0].name,
                each.client_identity,
                functools.partial(_text, each.server_proxy_log),
            )
            for each in scenes
        ]
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
    checks = _tls_checks(scene, own, foreign, client=scene.outsider, whose="the clients'")
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        observed = list(pool.map(lambda check: check.run(), checks))
    return [check.judged(seen) for check, seen in zip(checks, observed, strict=True)]


def _text(log: Path) -> str:
    return log.read_text() if log.exists() else ""


@dataclass(frozen=True, kw_only=True)
class _Check(ProofAttempt):
    # the filter must have dropped packets of this flow meanwhile
    flow: firewall.Flow | None = None

    def judge(self, seen: str, before: dict[firewall.Flow, int], after: dict[firewall.Flow, int]) -> Proof:
        proof = self.judged(seen)
        if self.flow is None:
            return proof
        packets = after.get(self.flow, 0) - before.get(self.flow, 0)
        return dataclasses.replace(
            proof,
            observed=f"{seen}, {packets} packets dropped by the policy",
            passed=proof.passed and packets > 0,
        )


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


def _tls_checks(
    scene: ProofScene, own: Path, foreign: Path, *, client: Pod | None = None, whose: str = "its"
) -> list[ProofAttempt]:
    return tls_attempts(
        TlsWay(
            client=client or scene.clients[0],
            server=scene.server,
            port=scene.port,
            application_port=scene.loopback_port or 0,
            service_name=scene.service_name,
            server_identity=scene.server_identity,
            own=own,
            whose=whose,
            foreign={"another account's": foreign},
        )
    )


def _resolve(pod: Pod, scene: ProofScene) -> str:
    # UDP is not repeated by anyone but us: one lost datagram must not fail the proof.
    for _ in range(3):
        try:
            answers = dns.query(pod.netns, scene.dns.address, scene.service_name, _SILENCE_S)
        except TimeoutError:
            continue
        return f"{scene.service_name} is {', '.join(answers) or 'unknown'}"
    return SILENT
