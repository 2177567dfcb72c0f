"""A cluster of two nodes in the API's words, with an agent each; they share this machine's kernel."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.agent_service import Service, service
from tests.kernel.cluster import NODE, KubeNode
from ztprobe.agent.service.wire import TlsFiles
from ztprobe.kernelnet.netlink import netlink
from ztprobe.kernelnet.netns import entered

__all__ = ("ADDRESSES", "OTHER", "SILENT", "Agents", "deploy_agents")

OTHER, SILENT = "node-b", "node-c"
ADDRESSES = {NODE: "10.98.0.2", OTHER: "10.98.0.3", SILENT: "10.98.0.1"}  # nobody listens on the last one


@dataclass
class Agents:
    """A cluster with two agents that answer, one that does not, and a node without one."""

    node: KubeNode
    tls: dict[str, TlsFiles]
    directory: Path

    @contextlib.contextmanager
    def serving(
        self, name: str, *options: str, own_state: bool = False, **environment: str
    ) -> Iterator[Service]:
        """The agent of a node.

        :param own_state: its leases are no other's, as on a machine of its own.
        """
        with entered(self.node.netns), contextlib.ExitStack() as stack:
            served = stack.enter_context(
                service(
                    self.tls["agent"],
                    self.directory / f"agent-{name}",
                    *options,
                    listen=f"{ADDRESSES[name]}:7443",
                    ztprobe_state=self.state(name) if own_state else None,
                    NODE_NAME=name,
                    **environment,
                )
            )
            kept = stack.pop_all()
        with kept:
            yield served

    def state(self, name: str) -> Path:
        """Where a node's leases are written down, if they are no other's."""
        return self.directory / f"state-{name}"


def _announce(node: KubeNode, name: str) -> None:
    """What the API says of a node's agent."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"agent-{name}", "labels": {"app": "ztprobe-agent"}},
        "spec": {"nodeName": name, "containers": [{"name": "agent", "image": "none"}]},
    }
    pods = "/api/v1/namespaces/ztprobe/pods"
    node.call("POST", pods, pod)
    status = {"phase": "Running", "podIP": ADDRESSES[name], "podIPs": [{"ip": ADDRESSES[name]}]}
    node.call("PATCH", f"{pods}/agent-{name}/status", {"status": status})


def deploy_agents(node: KubeNode, collector: TlsFiles) -> None:
    """What the API knows of them: pods on their nodes, and the collector's certificate."""
    node.call("POST", "/api/v1/namespaces", {"metadata": {"name": "ztprobe"}})
    files = {"tls.crt": "certificate", "tls.key": "key", "ca.crt": "authority"}
    held = {name: getattr(collector, field).read_bytes() for name, field in files.items()}
    secret = {
        "metadata": {"name": "ztprobe-collector-tls"},
        "type": "kubernetes.io/tls",
        "data": {name: base64.b64encode(content).decode() for name, content in held.items()},
    }
    node.call("POST", "/api/v1/namespaces/ztprobe/secrets", secret)
    with netlink(node.netns) as ipr:
        (bridge,) = ipr.link_lookup(ifname="cni0")
        for address in (ADDRESSES[NODE], ADDRESSES[OTHER]):
            ipr.addr("add", index=bridge, address=address, prefixlen=24)
    for name in ADDRESSES:
        _announce(node, name)
