"""A federation that none of our manifests makes, as somebody else might write one.

Names, ports and labels are others, and clients reach their server by a Service's own address.

What runs in it is the workload's server and clients that spend CPU time instead of training, behind gRPC.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.cluster.real_node import RealNode, namespace_gone, wait_for

CLINIC, SERVICE_PORT = "clinic", 80
SERVER, CLIENT = "app=aggregator", "app=hospital"
COMPUTE_S = 0.2
_PORT = 9000
_COMMON = {
    "FL_CLIENTS": "2",
    "FL_OPTIONS": json.dumps({"client": "synthetic", "synthetic_compute_ms": COMPUTE_S * 1000}),
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Clinic:
    """The federation, all of whose pods are there."""

    node: RealNode
    address: str  # the Service's

    def server(self) -> dict[str, Any]:
        """The server's pod."""
        (pod,) = self.node.ready(CLINIC, SERVER)
        return pod

    def log(self) -> str:
        """What the server has written."""
        name = self.server()["metadata"]["name"]
        return str(self.node.call("GET", f"/api/v1/namespaces/{CLINIC}/pods/{name}/log"))

    def clients(self) -> list[dict[str, Any]]:
        """Those that are ready now."""
        return self.node.ready(CLINIC, CLIENT)

    def names(self) -> set[str]:
        """Of the clients' pods."""
        return {str(pod["metadata"]["name"]) for pod in self.clients()}

    def delete(self, name: str) -> None:
        """As `kubectl delete pod` does; its ReplicaSet makes another one."""
        self.node.call("DELETE", f"/api/v1/namespaces/{CLINIC}/pods/{name}")


@contextlib.contextmanager
def clinic(node: RealNode) -> Iterator[Clinic]:
    """Bring it up, and take it away again."""
    namespace = f"/api/v1/namespaces/{CLINIC}"
    node.create([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": CLINIC}}])
    try:
        wait_for("its account is there", lambda: node.call("GET", f"{namespace}/serviceaccounts/default"))
        node.create([_service(), _deployment("aggregator", "aggregator", "fl.server", _of_server())])
        node.create(
            _deployment(f"hospital-{number}", "hospital", "fl.client", _of_client(number))
            for number in range(2)
        )
        address = node.call("GET", f"{namespace}/services/models")["spec"]["clusterIP"]
        made = Clinic(node, address)
        wait_for("all of it runs", lambda: node.ready(CLINIC, SERVER) and len(made.clients()) == 2, 120)
        wait_for("rounds go on", lambda: '"round_end"' in made.log(), 120)
        yield made
    finally:
        node.call("DELETE", namespace)
        wait_for("it is gone", namespace_gone(node, CLINIC), 120)


def _of_server() -> dict[str, str]:
    return _COMMON | {
        "FL_LISTEN": f"0.0.0.0:{_PORT}",
        "FL_ROUNDS": "100000",
        "FL_EVAL_EVERY": "100000",
    }


def _of_client(number: int) -> dict[str, str]:
    target = f"models.{CLINIC}.svc.cluster.local:{SERVICE_PORT}"
    return _COMMON | {"FL_SERVER": target, "JOB_COMPLETION_INDEX": str(number)}


def _service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "models", "namespace": CLINIC},
        "spec": {
            "selector": {"app": "aggregator"},
            "ports": [{"port": SERVICE_PORT, "targetPort": _PORT}],
        },
    }


def _deployment(name: str, app: str, module: str, environment: dict[str, str]) -> dict[str, Any]:
    own_name = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    labels = {"app": app, "part": name}
    container = {
        "name": "main",
        "image": "ztprobe/fl:0.1.0",
        "command": ["python", "-m", module],
        "env": [own_name, *({"name": key, "value": value} for key, value in environment.items())],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": CLINIC},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 5, "containers": [container]},
            },
        },
    }
