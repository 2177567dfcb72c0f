"""Pods and documents for tests of policies."""

from __future__ import annotations

from typing import Any

from ztprobe.policy import PolicyPod

__all__ = ("document", "pod")


def pod(
    name: str,
    address: str,
    namespace: str = "fl",
    ports: dict[tuple[str, str], int] | None = None,
    **labels: str,
) -> PolicyPod:
    return PolicyPod(name=name, namespace=namespace, labels=labels, address=address, ports=ports or {})


def document(name: str, spec: dict[str, Any], namespace: str = "fl") -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
