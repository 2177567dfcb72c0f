"""What stands at the roots of pods' interfaces, whoever put it there, and what it did while they were known.

A qdisc counts from when it was made, which may be long before anybody traced: what it had counted when the
pod became known is taken off, unless it has been replaced since.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ztprobe.kernelnet.netlink import NetlinkError, netlink
from ztprobe.kernelnet.root_qdisc import RootQdisc, root_qdisc
from ztprobe.pods.model import Pod

__all__ = ("ObservedQdiscs", "observed_qdisc")

_COUNTERS = ("packets", "drops", "overlimits")
_LOOPBACK = "lo"
_NO_QDISC = "noqueue"


@dataclass(frozen=True)
class _Known:
    pod: Pod
    before: dict[str, RootQdisc]  # by interface


class ObservedQdiscs:
    """Of the pods of a node, from when each is known until it is left."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._left: dict[str, dict[str, Any] | None] = {}

    def add(self, pod: Pod) -> None:
        """Note what has been counted so far."""
        self._known[pod.name] = _Known(pod, _standing(pod) or {})
        self._left.pop(pod.name, None)

    def leave(self, pod: Pod) -> None:
        """Read for the last time what stands at a pod that will not be there any more."""
        if (known := self._known.pop(pod.name, None)) is not None:
            self._left[pod.name] = _since(known)

    def read(self) -> dict[str, dict[str, Any] | None]:
        """By pod; see `observed_qdisc`."""
        return self._left | {name: _since(known) for name, known in self._known.items()}


def observed_qdisc(pod: Pod) -> dict[str, Any] | None:
    """What stands at the root of a pod's interface (the loopback, where it has no other) and has counted.

    :returns: ``interface``, ``kind``, ``packets``, ``drops``, ``overlimits``, and in ``others`` the same of
        further interfaces, of the loopback only where a queue stands there; None: the pod is gone.
    """
    return _since(_Known(pod, {}))


def _since(known: _Known) -> dict[str, Any] | None:
    found = _standing(known.pod)
    if not found:
        return None
    first, *others = (_counted(name, qdisc, known.before.get(name)) for name, qdisc in found.items())
    return first | ({"others": others} if others else {})


def _counted(interface: str, now: RootQdisc, before: RootQdisc | None) -> dict[str, Any]:
    counted = {name: getattr(now, name) for name in _COUNTERS}
    if before is not None and (before.kind, before.handle) == (now.kind, now.handle):
        earlier = {name: getattr(before, name) for name in _COUNTERS}
        # One of the same kind and handle that counts from nothing again is another one.
        if all(earlier[name] <= counted[name] for name in _COUNTERS):
            counted = {name: counted[name] - earlier[name] for name in _COUNTERS}
    return {"interface": interface, "kind": now.kind, **counted}


def _standing(pod: Pod) -> dict[str, RootQdisc] | None:
    """By interface, the pod's first one first; None: it cannot be entered any more."""
    found: dict[str, RootQdisc] = {}
    try:
        with netlink(pod.netns) as ipr:
            for name in _named(pod):
                for index in ipr.link_lookup(ifname=name):
                    qdisc = root_qdisc(ipr, index)
                    if qdisc is not None and (name != _LOOPBACK or not found or qdisc.kind != _NO_QDISC):
                        found[name] = qdisc
    except (OSError, NetlinkError):
        return None
    return found


def _named(pod: Pod) -> Iterable[str]:
    return (*pod.interfaces, _LOOPBACK)
