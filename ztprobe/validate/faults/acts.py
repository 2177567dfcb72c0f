"""What is done to a run from outside to break it: at a moment, and undone when the rounds are over.

Each function returns a `Do`, which acts on a scene and returns how to take that back (None: it goes
with the pods). `Act` waits for its moment and keeps the note of what was done and when.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ztprobe.errors import EnforcementError, WorkloadError
from ztprobe.kernelnet.netlink import netlink
from ztprobe.kernelnet.netns import entered
from ztprobe.validate.faults.objects import Objects
from ztprobe.validate.inject.scene import POLL_S, Note, Scene

__all__ = (
    "NODE",
    "Act",
    "Moment",
    "change_names",
    "change_policies",
    "filter_rules",
    "forget_connections",
    "kill",
    "limit_cpu",
    "limit_files",
    "link_down",
    "link_mtu",
    "shape",
    "stop",
    "sysctl",
)

NODE = ""  # in place of a pod: the node's own namespace
_TABLE = "ztprobe_fault"
_CPU_PERIOD_US = 100_000
_NETLINK_NETFILTER = 12
_DELETE_CONNECTIONS = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_REQUEST_AND_ACK = 5

Undo = Callable[[], None]
Do = Callable[[Scene], Undo | None]


class Moment(NamedTuple):
    """An event in a pod's log, of a round; round 0: the first of that name."""

    pod: str
    event: str
    round: int = 0


class Act:
    """An `Injector` that does one thing at a moment.

    :param at: None: before any client has started.
    """

    def __init__(self, kind: str, do: Do, at: Moment | None = None) -> None:
        self.kind = kind
        self._do = do
        self._at = at

    @contextlib.contextmanager
    def __call__(self, scene: Scene) -> Iterator[None]:
        """See `Injector`. What cannot be done is among the scene's problems."""
        undo: list[Undo] = []
        come, over = threading.Event(), threading.Event()

        def on_event(pod: str, event: dict[str, Any]) -> None:
            at = self._at
            if at is not None and (pod, event["event"]) == at[:2] and at.round in (0, event.get("round")):
                come.set()

        def wait() -> None:
            while not over.wait(POLL_S):
                if come.is_set():
                    self._act(scene, undo)
                    return

        thread = threading.Thread(target=wait, daemon=True)
        if self._at is None:
            self._act(scene, undo)
        else:
            scene.follower.listen(on_event)
            thread.start()
        try:
            yield
        finally:
            over.set()
            if thread.ident is not None:
                thread.join()
            for one in undo:
                with contextlib.suppress(OSError):  # the pod has gone, and what was done to it
                    one()

    def _act(self, scene: Scene, undo: list[Undo]) -> None:
        begin_ns = time.monotonic_ns()
        try:
            back = self._do(scene)
        except (OSError, EnforcementError, WorkloadError, KeyError) as error:
            scene.problems.append(f"{self.kind}: could not be done: {error}")
            return
        if back is not None:
            undo.append(back)
        pod = self._at.pod if self._at is not None else ""
        scene.notes.append(
            Note(
                kind=self.kind,
                pod=pod,
                round=scene.follower.round,
                begin_ns=begin_ns,
                end_ns=time.monotonic_ns(),
            )
        )


# processes


def kill(pod: str, container: str, how: signal.Signals = signal.SIGKILL) -> Do:
    """End a container's process."""

    def do(scene: Scene) -> None:
        os.kill(scene.pid(pod, container), how)

    return do


def stop(pod: str, container: str) -> Do:
    """Stop a container's process, which keeps its connections."""

    def do(scene: Scene) -> Undo:
        pid = scene.pid(pod, container)
        os.kill(pid, signal.SIGSTOP)
        return lambda: os.kill(pid, signal.SIGCONT)

    return do


def limit_files(pod: str, container: str, more: int) -> Do:
    """Let a process open so many files beyond those that it has open."""

    def do(scene: Scene) -> None:
        pid = scene.pid(pod, container)
        highest = max(int(entry) for entry in os.listdir(f"/proc/{pid}/fd"))
        limit = highest + 1 + more
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))

    return do


def limit_cpu(pod: str, container: str, cores: float) -> Do:
    """A CPU limit for a container, as a change of its resources in place sets it."""

    def do(scene: Scene) -> None:
        quota_us = round(cores * _CPU_PERIOD_US)
        for cgroup in _cgroups(scene.pid(pod, container)):
            for file, value in (
                ("cpu.max", f"{quota_us} {_CPU_PERIOD_US}"),
                ("cpu.cfs_quota_us", f"{quota_us}"),
            ):
                if (cgroup / file).exists():
                    (cgroup / file).write_text(value)
                    return
        raise WorkloadError("no cgroup of it takes a CPU limit")

    return do


def _cgroups(pid: int) -> Iterator[Path]:
    """The process's cgroup in each hierarchy that is mounted."""
    mounted: dict[str, Path] = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            mounted[""] = Path(where)
        elif kind == "cgroup":
            mounted |= {option: Path(where) for option in options.split(",")}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        root = mounted.get(controllers.split(",")[0])
        if root is not None:
            yield root / path.lstrip("/")


# the kernel's settings and links


def _netns(scene: Scene, pod: str) -> Path:
    return scene.runtime.server.node_netns if pod == NODE else scene.pod(pod).netns


def sysctl(pod: str, name: str, value: str) -> Do:
    """Another setting in a pod's namespace, or the node's (`NODE`)."""

    def do(scene: Scene) -> Undo:
        netns, file = _netns(scene, pod), Path("/proc/sys", *name.split("."))

        def write(text: str) -> None:
            with entered(netns):
                file.write_text(text)

        with entered(netns):
            before = file.read_text().strip()
        write(value)
        return lambda: write(before)

    return do


def link_mtu(pod: str, mtu_bytes: int) -> Do:
    """Another MTU at the node's end of a pod's link: what is longer is not forwarded, and nobody is told."""

    def do(scene: Scene) -> Undo:
        where = scene.pod(pod)

        def write(value: int) -> None:
            with netlink(where.node_netns) as ipr:
                ipr.link("set", index=ipr.link_lookup(ifname=where.host_interface)[0], mtu=value)

        with netlink(where.node_netns) as ipr:
            (link,) = ipr.get_links(ipr.link_lookup(ifname=where.host_interface)[0])
            before = link.get_attr("IFLA_MTU")
        write(mtu_bytes)
        return lambda: write(before)

    return do


def link_down(pod: str) -> Do:
    """The pod's link taken down at the node, as when its host loses power: nobody says goodbye."""

    def do(scene: Scene) -> Undo:
        where = scene.pod(pod)

        def write(state: str) -> None:
            with netlink(where.node_netns) as ipr:
                ipr.link("set", index=ipr.link_lookup(ifname=where.host_interface)[0], state=state)

        write("down")
        return lambda: write("up")

    return do


def shape(pod: str, interface: str, rate_kbit: int, limit_bytes: int, burst_bytes: int = 4000) -> Do:
    """A token bucket that no profile of the run asks for.

    :param interface: of the pod; ``host``: the node's end of its link.
    """

    def do(scene: Scene) -> Undo:
        where = scene.pod(pod)
        netns = where.node_netns if interface == "host" else where.netns
        name = where.host_interface if interface == "host" else interface

        def change(command: str, **options: int) -> None:
            with netlink(netns) as ipr:
                index = ipr.link_lookup(ifname=name)[0]
                # tc qdisc replace dev NAME root tbf rate .. burst .. limit ..
                ipr.tc(command, "tbf", index=index, handle=0x7F0000, root=True, **options)

        change("replace", rate=rate_kbit * 1000 // 8, burst=burst_bytes, limit=limit_bytes)
        return lambda: change("del")

    return do


# what filters packets, and what the objects say


def filter_rules(pod: str, hook: str, *rules: str) -> Do:
    """Rules of a packet filter that no policy asks for, in a pod's namespace or the node's (`NODE`).

    :param rules: in nft's words; ``{NAME}`` is the address of the pod NAME (with ``_`` for ``-``).
    """

    def do(scene: Scene) -> Undo:
        netns = _netns(scene, pod)
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
        _nft(netns, text)
        return lambda: _nft(netns, f"delete table ip {_TABLE}") if netns.exists() else None

    return do


def _nft(netns: Path, text: str) -> None:
    with entered(netns):
        done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnforcementError(f"nft: {' '.join(done.stderr.split())}")


def change_policies(edit: Callable[[Objects], None]) -> Do:
    """Put edited NetworkPolicies in force."""

    def do(scene: Scene) -> None:
        runtime: Any = scene.runtime
        objects = Objects([_thawed(policy) for policy in runtime.policies])
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
