"""Pods for a deployment of processes, made of what the local runtime makes its own of.

A namespace each around a node that forwards, a network profile on every pod's egress, NetworkPolicies as the
packet filter that `ztprobe.policy` compiles, and an haproxy beside every application with mutual TLS between
them: the published manifests' own policies and proxy configurations, with this deployment's ports in them.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.frameworks.networks import Place
from tests.frameworks.processes import Processes
from ztprobe import paths, policy
from ztprobe.agent.emulator import Emulator
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.profile.model import load_profile
from ztprobe.runtime.local import certificates, firewall, network, sidecar, transport
from ztprobe.runtime.local.journal import Journal

__all__ = ("PROXY_ENTRY_PORT", "PROXY_PORT", "Pods", "pods")

NAMESPACE = "fl"
SERVER_NAME = "fl-server.fl.svc.cluster.local"
PROXY_PORT = 50051  # of the server's proxy, and what the manifests' policies open
PROXY_ENTRY_PORT = 15001  # of a client's, on its own loopback
_COMPONENTS = paths.MANIFESTS_DIR / "components"
_READY_S = 30.0
_KNOCK_S = 0.5
_SHUT_PORT = 9


@dataclass
class Pods:
    """The server's pod and its clients', connected."""

    node: network.NodeNetwork
    found: list[Pod]  # the server's first
    directory: Path
    emulator: Emulator

    @property
    def places(self) -> list[Place]:
        """Where processes of each are to run."""
        return [Place(pod.netns, pod.address) for pod in self.found]

    def enforce(self, port: int) -> None:
        """Put the manifests' NetworkPolicies in force, and see that they are.

        :param port: where clients reach the server's pod.
        """
        text = (_COMPONENTS / "network-policy" / "policies.yaml").read_text()
        documents = list(yaml.safe_load_all(text.replace(f"port: {PROXY_PORT}", f"port: {port}")))
        for document in documents:
            document["metadata"]["namespace"] = NAMESPACE
        members = [
            policy.PolicyPod(name=pod.name, namespace=pod.namespace, labels=pod.labels, address=pod.address)
            for pod in self.found
        ]
        firewall.load(self.node.netns, policy.to_nft(policy.compile_policies(documents, members)))
        server, client = self.found[:2]
        with entered(client.netns), socket.socket() as knocking, contextlib.suppress(OSError):
            knocking.settimeout(_KNOCK_S)
            knocking.connect((server.address, _SHUT_PORT))
        assert self.policy_counters()["drop_egress"], "the NetworkPolicies are not in force"

    def policy_counters(self) -> dict[str, int]:
        """Packets that were let through as part of a connection, and dropped by direction."""
        return firewall.counters(self.node.netns)

    def start_sidecars(self, started: Processes, application_port: int) -> None:
        """Start a proxy in every pod and wait until all of them are ready.

        :param application_port: of the server's application, on its pod's loopback.
        """
        authority = certificates.Authority(self.node.prefix)
        for pod in self.found:
            is_server = pod is self.found[0]
            account = "fl-server" if is_server else "fl-client"
            room = self.directory / "sidecars" / pod.name
            room.mkdir(parents=True)
            authority.issue(room / "tls", NAMESPACE, account, [SERVER_NAME] if is_server else [])
            found = _proxy_configuration(f"{account}-proxy").replace("/run/fl/tls", str(room / "tls"))
            if is_server:
                found = _replaced(found, "127.0.0.1:15051", f"127.0.0.1:{application_port}")
                # The connection to the application, by which the hub's log knows who asked.
                found = _replaced(found, '"to":"%si:%sp"', '"to":"%si:%sp","from":"%bi:%bp"')
                # Once it is there: those that are still open at the end would have no line.
                found = _replaced(found, "    log global\n", "    log global\n    option logasap\n")
            else:
                # There is no name service here: the one name that there is stands in the certificate.
                name = f"{SERVER_NAME}:{PROXY_PORT} resolvers pod resolve-prefer ipv4 init-addr none"
                found = _replaced(found, name, f"{self.found[0].address}:{PROXY_PORT}")
                found = re.sub(r"resolvers pod\n(?: .*\n)+", "", found)
            (room / "haproxy.cfg").write_text(found)
            command = Place(pod.netns, pod.address).command("haproxy", "-db", "-f", str(room / "haproxy.cfg"))
            started.start(f"proxy-{pod.name}", command, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        deadline = time.monotonic() + _READY_S
        waiting = list(self.found)
        while waiting := [pod for pod in waiting if not sidecar.backends_ready(pod.netns)]:
            started.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"sidecars are not ready: {', '.join(pod.name for pod in waiting)}")
            time.sleep(0.1)


def _proxy_configuration(name: str) -> str:
    documents: list[dict[str, Any]] = list(
        yaml.safe_load_all((_COMPONENTS / "mtls" / "proxy-config.yaml").read_text())
    )
    (found,) = (one["data"]["haproxy.cfg"] for one in documents if one["metadata"]["name"] == name)
    return str(found)


def _replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old} is no longer in the manifests' configuration once"
    return text.replace(old, new)


@contextlib.contextmanager
def pods(clients: int, profile: str, directory: Path) -> Iterator[Pods]:
    """A server's pod and those of its clients; gone with the context, or by `ztprobe clean`.

    :param profile: by name, as `ztprobe trace --experiment` takes it.
    :param directory: for the proxies' files and the delay line's.
    """
    run = f"f{secrets.token_hex(3)}"
    names = ["fl-server", *(f"fl-client-{number}" for number in range(clients))]
    node = network.NodeNetwork(run, offloads=False)
    journal = Journal(run)
    try:
        journal.namespaces(node.name(name) for name in ("node", *names))
        node.create()
        placed = [
            network.PodAddress(
                name=name,
                namespace=NAMESPACE,
                labels={"app": "fl-server" if number == 0 else "fl-client"},
                loopback_port=None,
                number=number,
            )
            for number, name in enumerate(names)
        ]
        found = [node.add(where) for where in placed]
        node.introduce(list(zip(found, placed, strict=True)))
        transport.choose(journal, [pod.netns for pod in found], "cubic")
        with Emulator(load_profile(profile), found, node.netns, directory / "emulation", seed=1) as emulator:
            emulator.apply()
            yield Pods(node, found, directory, emulator)
    finally:
        journal.close()
