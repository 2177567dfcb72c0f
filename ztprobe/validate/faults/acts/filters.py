"""Acts on packet filters, on the objects that they are made of, and on the name service."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ztprobe.errors import EnforcementError
from ztprobe.kernelnet.netns import entered
from ztprobe.validate.faults.acts.act import Do, Undo, namespace_of
from ztprobe.validate.faults.objects import EditedObjects
from ztprobe.validate.inject.scene import Scene

__all__ = (
    "change_names",
    "change_policies",
    "filter_rules",
    "forget_connections",
    "load_rules",
)

_TABLE = "ztprobe_fault"
_NETLINK_NETFILTER = 12
_DELETE_CONNECTIONS = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_REQUEST_AND_ACK = 5


def filter_rules(pod: str, hook: str, *rules: str) -> Do:
    """Rules of a packet filter that no policy asks for, in a pod's namespace or the node's (`NODE`).

    :param rules: in nft's words; ``{NAME}`` is the address of the pod NAME (with ``_`` for ``-``).
    """

    def do(scene: Scene) -> Undo:
        netns = namespace_of(scene, pod)
        addresses = {one.name.replace("-", "_"): one.address for one in scene.runtime.pods}
        text = "\n".join(
            [
                f"table ip {_TABLE} {{",
                f"  chain gate {{ type filter hook {hook} priority -170; policy accept;",
                *(f"    {rule.format(**addresses)}" for rule in rules),
                "  }",
                "}",
            ]
        )
        load_rules(netns, text)
        return lambda: load_rules(netns, f"delete table ip {_TABLE}") if netns.exists() else None

    return do


def change_policies(edit: Callable[[EditedObjects], None]) -> Do:
    """Put edited NetworkPolicies in force."""

    def do(scene: Scene) -> None:
        runtime: Any = scene.runtime
        objects = EditedObjects([_thawed(policy) for policy in runtime.policies])
        edit(objects)
        runtime.enforce(objects.documents)

    return do


def _thawed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, list | tuple) else value


def change_names(names: dict[str, list[str]]) -> Do:
    """Have the name service answer for these names only; a pod's name stands for its address."""

    def do(scene: Scene) -> None:
        runtime: Any = scene.runtime
        addresses = {pod.name: pod.address for pod in runtime.pods}
        runtime.names.answer(
            {n: [addresses.get(one, one) for one in several] for n, several in names.items()}
        )

    return do


def forget_connections(scene: Scene) -> None:
    """Empty the node's table of tracked connections, as a filter that reloads everything does."""
    with entered(scene.runtime.server.node_netns):
        control = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    with control:
        head = struct.pack("=IHHII", 20, _DELETE_CONNECTIONS, _REQUEST_AND_ACK, 1, 0)
        control.send(head + struct.pack("=BBH", socket.AF_INET, 0, 0))
        (error,) = struct.unpack_from("=i", control.recv(4096), 16)
        if error:
            raise OSError(-error, os.strerror(-error))


def load_rules(netns: Path, text: str) -> None:
    """What nft makes of a text, in a namespace. :raises EnforcementError: it refuses."""
    with entered(netns):
        done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnforcementError(f"nft: {' '.join(done.stderr.split())}")
