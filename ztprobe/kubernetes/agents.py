"""The agents that a cluster's nodes run, and what a collector shows them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field

from ztprobe.errors import PreflightError, ZtprobeError
from ztprobe.kubernetes.answers import Object
from ztprobe.kubernetes.api import Api

__all__ = ("AGENTS_NAMESPACE", "COLLECTOR_SECRET", "AgentAddress", "agents_of", "collector_certificate")

AGENTS_NAMESPACE = "ztprobe"
COLLECTOR_SECRET = "ztprobe-collector-tls"
_LABEL = "app=ztprobe-agent"
_PORT = 7443
_FILES = ("tls.crt", "tls.key", "ca.crt")


def _unknown() -> None:
    """What nothing says."""


@dataclass(frozen=True, kw_only=True)
class AgentAddress:
    """Where a node's agent listens."""

    node: str  # empty: not known before it says so
    address: str  # HOST:PORT, or unix:PATH
    # Why it will never answer again, of one that does not; None: nothing says so.
    why_gone: Callable[[], str | None] = field(default=_unknown, compare=False)


def agents_of(api: Api, namespace: str = AGENTS_NAMESPACE) -> list[AgentAddress]:
    """The agents that run, a node each.

    :raises PreflightError: there is none, or the API refuses to list pods.
    """
    found: dict[str, AgentAddress] = {}
    for pod in api.objects("pods", namespace, _LABEL):
        spec, status = pod["spec"], pod["status"]
        address = status.get("podIP") or ""
        if status.get("phase") == "Running" and address and "deletionTimestamp" not in pod["metadata"]:
            host = f"[{address}]" if ":" in address else address
            node = spec.get("nodeName") or ""
            found[node] = AgentAddress(
                node=node,
                address=f"{host}:{_PORT}",
                why_gone=functools.partial(_why_gone, api, namespace, pod["metadata"]),
            )
    if not found:
        raise PreflightError(
            f"no agent runs in namespace {namespace} ({_LABEL}): ztprobe deploy agent puts one on every node"
        )
    return [found[node] for node in sorted(found)]


def _why_gone(api: Api, namespace: str, metadata: Object) -> str | None:
    with contextlib.suppress(ZtprobeError):  # whoever does not say so has not said that it is gone
        pods = api.objects("pods", namespace, _LABEL)
        if metadata["uid"] not in {pod["metadata"]["uid"] for pod in pods}:
            return f"its pod {namespace}/{metadata['name']} has been removed"
    return None


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
