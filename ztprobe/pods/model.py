"""The one type that describes a pod: names as Kubernetes has them, its network as the kernel has it.

What runs in a pod and what it writes is not part of the value, because it changes: a
`ztprobe.pods.source.PodSource` tells that. A pod on another node has names and an address, and
nothing that could be entered.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ("NOWHERE", "Pod", "still_there")

NOWHERE = Path("/nonexistent")  # the namespace of what does not run here


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A pod that runs, here or on another node."""

    name: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str  # IPv4
    netns: Path
    netns_inode: int  # tells a namespace from a later one of the same path; 0: it is on another node
    interface: str  # inside the pod: eth0; empty: it has none but the loopback
    host_interface: str  # the other end of its veth, in node_netns; empty: it has none
    node_netns: Path  # where packets between pods are forwarded
    run: str = ""  # of the local runtime; empty: of a cluster
    uid: str = ""  # in a cluster
    node: str = ""  # in a cluster
    other_interfaces: tuple[str, ...] = ()  # where its packets pass besides; a pod of a cluster has one

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def is_here(self) -> bool:
        """Whether it runs on this node; otherwise it is only an address."""
        return self.netns_inode != 0

    @property
    def runtime(self) -> str:
        """local | kubernetes"""
        return "local" if self.run else "kubernetes"

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Where its packets pass, the loopback left out."""
        return (self.interface, *self.other_interfaces) if self.interface else ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        named = {name: str(value) for name, value in asdict(self).items() if isinstance(value, Path)}
        return asdict(self) | named | {"other_interfaces": list(self.other_interfaces)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Pod:
        """:raises (KeyError, TypeError): not what `as_dict` gives."""
        values = dict(data)
        paths = {name: Path(values[name]) for name in ("netns", "node_netns")}
        return cls(**values | paths | {"other_interfaces": tuple(values.get("other_interfaces", ()))})


def still_there(netns: Path, netns_inode: int) -> bool:
    """Whether the path is still the namespace that it was."""
    try:
        return os.stat(netns).st_ino == netns_inode
    except OSError:
        return False
