"""What kubelet and scheduler say of a run's pods: what hinders one, who has ended and how. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ztprobe.kubernetes.answers import Object
from ztprobe.printable import printable
from ztprobe.runtime.cluster.gate import GATE, GATES, HOLD, is_sidecar

__all__ = (
    "Hindrance",
    "container_names",
    "exits",
    "has_ended",
    "hindrance",
    "is_at_gate",
    "is_going",
    "node_of",
    "removed_by",
    "short_of_memory",
)

# A container that waits for one of these waits for somebody to change something.
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_FATAL = (
    *("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"),
)
_LONGEST = 300
_BY_SIGNAL = 128  # as shells and container runtimes have it: exit status of what a signal killed
_LAST_SIGNAL = 64


@dataclass(frozen=True, kw_only=True)
class Hindrance:
    """Why a pod does not come to its gate."""

    words: str
    is_final: bool  # waiting will not help


def _statuses(pod: Object) -> Iterator[Mapping[str, Any]]:
    for section in ("initContainerStatuses", "containerStatuses"):
        yield from pod["status"].get(section) or ()


def node_of(pod: Object) -> str:
    """Where it is; empty: nowhere yet."""
    return str(pod["spec"].get("nodeName") or "")


def is_at_gate(pod: Object, gate: str = GATE) -> bool:
    """Whether its network is there and a gate holds it."""
    running = {one.get("name") for one in _statuses(pod) if "running" in (one.get("state") or {})}
    return gate in running and bool(pod["status"].get("podIP"))


def container_names(pods: Iterable[Object]) -> dict[str, str]:
    """Container's ID -> its name."""
    found = {}
    for pod in pods:
        for one in _statuses(pod):
            # RUNTIME://ID, empty before it is made
            if identity := str(one.get("containerID") or "").rpartition("/")[2]:
                found[identity] = str(one.get("name"))
    return found


def exits(pods: Iterable[Object]) -> dict[str, int]:
    """POD/CONTAINER -> exit status (negative: the signal) of all that have ended, ours left out.

    A sidecar that kubelet has started again had ended; one that it ends because the application has is none
    of them.
    """
    found = {}
    for pod in pods:
        sidecars = {one["name"] for one in pod["spec"].get("initContainers") or () if is_sidecar(one)}
        applications = [
            one.get("state") or {}
            for one in pod["status"].get("containerStatuses") or ()
            if one.get("name") != HOLD
        ]
        is_over = bool(applications) and all("terminated" in state for state in applications)
        for one in _statuses(pod):
            ended = (one.get("state") or {}).get("terminated")
            if one.get("name") in sidecars:
                ended = None if is_over else ended or (one.get("lastState") or {}).get("terminated")
            if ended is not None and one.get("name") not in (*GATES, HOLD):
                found[f"{pod['metadata']['name']}/{one.get('name')}"] = _status(ended)
    return found


def _status(ended: Mapping[str, Any]) -> int:
    status = int(ended.get("exitCode", 0))
    return _BY_SIGNAL - status if _BY_SIGNAL < status <= _BY_SIGNAL + _LAST_SIGNAL else status


def short_of_memory(pod: Object, container: str) -> bool:
    """Whether the kernel ended a container for want of memory."""
    reasons = {
        one.get("name"): ((one.get("state") or {}).get("terminated") or {}).get("reason")
        for one in _statuses(pod)
    }
    return reasons.get(container) == "OOMKilled"


def is_going(pod: Object) -> bool:
    """Whether somebody removes it."""
    return "deletionTimestamp" in pod["metadata"]


def has_ended(pod: Object) -> bool:
    """Whether its applications and sidecars have."""
    names = [one for one in _statuses(pod) if one.get("name") not in (*GATES, HOLD)]
    return all("terminated" in (one.get("state") or {}) for one in names)


def removed_by(pod: Object) -> str | None:
    """Who removes it and why, as its condition says (since 1.26); None: nothing is said."""
    for one in pod["status"].get("conditions") or ():
        if one.get("type") == "DisruptionTarget" and one.get("status") == "True":
            return _line(
                f"{one.get('reason') or 'no reason given'}: {one.get('message') or 'no more is said'}"
            )
    return None


def hindrance(pod: Object) -> Hindrance | None:
    """What keeps a pod from its gate; None: nothing that is said."""
    name, status = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}", pod["status"]
    if status.get("phase") == "Failed":
        said = f"{status.get('reason') or 'it failed'}: {status.get('message') or 'no reason given'}"
        return Hindrance(words=f"{name} is not run: {_line(said)}", is_final=True)
    for one in status.get("conditions") or ():
        if one.get("type") == "PodScheduled" and one.get("status") == "False":
            said = one.get("message") or one.get("reason") or "no reason given"
            return Hindrance(words=f"{name} cannot be scheduled: {_line(said)}", is_final=False)
    containers = {one["name"]: one for one in _containers(pod)}
    for one in _statuses(pod):
        waiting = (one.get("state") or {}).get("waiting") or {}
        reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
        if reason in _IMAGE:
            container = containers.get(one.get("name"), {})
            said = _line(message) or "no reason given"
            ours = "" if is_sidecar(container) else "make images builds it, "
            another = "" if is_sidecar(container) else ", --image names another"
            image = container.get("image", "")
            words = (
                f"{name}: the image {image} cannot be pulled ({reason}): {said}; {ours}ctr -n k8s.io images"
                f" import gives it to a node{another}"
            )
            return Hindrance(words=words, is_final=reason in _FATAL)
        if reason in _FATAL:
            words = f"{name}: container {one.get('name')} does not start ({reason}): {_line(message)}"
            return Hindrance(words=words, is_final=True)
    return None


def _containers(pod: Object) -> Iterator[Mapping[str, Any]]:
    for section in ("initContainers", "containers"):
        yield from pod["spec"].get(section) or ()


def _line(text: str) -> str:
    return printable(" ".join(str(text).split()), _LONGEST)
