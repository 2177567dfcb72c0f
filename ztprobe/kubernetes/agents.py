"""The agents that a cluster's nodes run, and what a collector shows them."""

from __future__ import annotations

from dataclasses import dataclass

from ztprobe.errors import PreflightError
from ztprobe.kubernetes.api import Api

__all__ = ("AGENTS_NAMESPACE", "COLLECTOR_SECRET", "AgentAddress", "agents_of", "collector_certificate")

AGENTS_NAMESPACE = "ztprobe"
COLLECTOR_SECRET = "ztprobe-collector-tls"
_LABEL = "app=ztprobe-agent"
_PORT = 7443
_FILES = ("tls.crt", "tls.key", "ca.crt")


@dataclass(frozen=True, kw_only=True)
class AgentAddress:
    """Where a node's agent listens."""

    node: str  # empty: not known before it says so
    address: str  # HOST:PORT, or unix:PATH


def agents_of(api: Api, namespace: str = AGENTS_NAMESPACE) -> list[AgentAddress]:
    """The agents that run, a node each.

    :raises PreflightError: there is none, or the API refuses to list pods.
    """
    found = {}
    for pod in api.objects("pods", namespace, _LABEL):
        spec, status = pod["spec"], pod["status"]
        address = status.get("podIP") or ""
        if status.get("phase") == "Running" and address and "deletionTimestamp" not in pod["metadata"]:
            host = f"[{address}]" if ":" in address else address
            found[spec.get("nodeName") or ""] = f"{host}:{_PORT}"
    if not found:
        raise PreflightError(
            f"no agent runs in namespace {namespace} ({_LABEL}): ztprobe deploy agent puts one on every node"
        )
    return [AgentAddress(node=node, address=address) for node, address in sorted(found.items())]


def collector_certificate(api: Api, namespace: str = AGENTS_NAMESPACE) -> tuple[bytes, bytes, bytes]:
    """A collector's certificate, its key, and the authority that the agents' are from, as PEM.

    :raises PreflightError: the Secret is not there, not whole, or not for us.
    """
    held = api.secret(namespace, COLLECTOR_SECRET)
    if missing := [name for name in _FILES if not held.get(name)]:
        raise PreflightError(
            f"the Secret {namespace}/{COLLECTOR_SECRET} has no {', '.join(missing)}: ztprobe deploy agent"
            " makes it again"
        )
    certificate, key, authority = (held[name] for name in _FILES)
    return certificate, key, authority
