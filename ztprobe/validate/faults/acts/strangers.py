"""Acts of a pod that has no part in the run: connections that take room from the run's own."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
from pathlib import Path
from typing import Any

from ztprobe.errors import WorkloadError
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.validate.faults.acts.act import Do, Undo
from ztprobe.validate.faults.acts.filters import load_rules
from ztprobe.validate.inject.scene import Scene

__all__ = (
    "half_open",
    "track_at_most",
)

_CONNTRACK = Path("/proc/sys/net/netfilter")
_AGAIN_S = 0.05
_DEAF = """table ip ztprobe_fault {{
  chain deaf {{
    type filter hook input priority 0; policy accept;
    tcp sport {} drop
  }}
}}
"""


def half_open(attempts: int) -> Do:
    """A stranger's connection attempts at the server that never become connections, and always new ones:
    the kernel lets go of old ones early where they are many.
    """

    def do(scene: Scene) -> Undo:
        stranger = _stranger(scene)
        # What it is answered does not reach it, so that it neither accepts nor refuses.
        load_rules(stranger.netns, _DEAF.format(scene.server_port))
        target = (scene.runtime.server.address, scene.server_port)
        over = threading.Event()

        def flood() -> None:
            sockets: list[socket.socket] = []
            with entered(stranger.netns):
                while True:
                    _close(sockets)  # the server is not told
                    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(attempts)]
                    for one in sockets:
                        one.setblocking(False)
                        one.connect_ex(target)
                    if over.wait(_AGAIN_S):
                        _close(sockets)
                        return

        thread = threading.Thread(target=flood, name="half-open", daemon=True)
        thread.start()

        def end() -> None:
            over.set()
            thread.join()

        return end

    return do


def track_at_most(connections: int) -> Do:
    """A stranger's open connections, and no room for more in the kernel's table than they take.

    The limit is the machine's, and as large as the run's node has entries: others have fewer.

    :raises WorkloadError: another namespace's table would be full as well.
    """

    def do(scene: Scene) -> Undo:
        runtime: Any = scene.runtime
        stranger = _stranger(scene)
        target = next(pod for pod in runtime.pods if pod.labels.get("k8s-app") == "kube-dns")
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        listener = _socket_in(target.netns)
        listener.bind((target.address, 0))
        listener.listen(64)
        sockets = [listener]
        for _ in range(connections):
            one = _socket_in(stranger.netns)
            one.connect(listener.getsockname())
            sockets += [one, listener.accept()[0]]
        with entered(runtime.server.node_netns):
            used = int((_CONNTRACK / "nf_conntrack_count").read_text())
        if int((_CONNTRACK / "nf_conntrack_count").read_text()) >= used:
            raise WorkloadError(f"this machine tracks {used} connections or more itself")
        stack = contextlib.ExitStack()
        stack.callback(_close, sockets)
        stack.enter_context(runtime.machine_setting(_CONNTRACK / "nf_conntrack_max", str(used)))
        return stack.close

    return do


def _close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


def _stranger(scene: Scene) -> Pod:
    runtime: Any = scene.runtime
    pod: Pod = runtime.outsider
    return pod


def _socket_in(netns: Path) -> socket.socket:
    with entered(netns):
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
