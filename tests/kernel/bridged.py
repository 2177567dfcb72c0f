"""Two pods on a bridge, for what acts between pods: emulation in the node, and how late it is."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ztprobe.kernelnet.netlink import create_netns, netlink, remove_netns
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod

_SO_TIMESTAMPNS = 35


@dataclass(frozen=True)
class Node:
    """A namespace with a bridge, and two pods on it."""

    netns: Path
    pods: tuple[Pod, Pod]


@contextlib.contextmanager
def bridged_node() -> Iterator[Node]:
    """Offloads on; removed with everything inside at the end."""
    tag = f"ztp-t{secrets.token_hex(3)}"
    names = [f"{tag}n", f"{tag}a", f"{tag}b"]
    with contextlib.ExitStack() as stack:
        paths = []
        for name in names:
            paths.append(create_netns(name))
            stack.callback(remove_netns, name)
        pods = tuple(
            pod_at(f"pod-{letter}", f"10.99.0.{i}", paths[i], f"veth{i}", node=paths[0])
            for i, letter in enumerate("ab", 1)
        )
        with netlink(paths[0]) as ipr:
            ipr.link("add", ifname="br0", kind="bridge")
            (bridge,) = ipr.link_lookup(ifname="br0")
            ipr.link("set", index=bridge, state="up")
            for pod in pods:
                peer = {"ifname": "eth0", "net_ns_fd": str(pod.netns)}
                ipr.link("add", ifname=pod.host_interface, kind="veth", peer=peer)
                (index,) = ipr.link_lookup(ifname=pod.host_interface)
                ipr.link("set", index=index, master=bridge, state="up")
        for pod in pods:
            with netlink(pod.netns) as ipr:
                (index,) = ipr.link_lookup(ifname="eth0")
                ipr.addr("add", index=index, address=pod.address, prefixlen=24)
                ipr.link("set", index=index, state="up")
        wait_until_reachable(*pods)
        yield Node(paths[0], (pods[0], pods[1]))


def pod_at(name: str, address: str, netns: Path, host_interface: str, *, node: Path, **labels: str) -> Pod:
    """A pod of the namespace ``fl`` whose interface is called eth0."""
    return Pod(
        name=name,
        namespace="fl",
        labels=labels,
        address=address,
        netns=netns,
        netns_inode=netns.stat().st_ino,
        interface="eth0",
        host_interface=host_interface,
        node_netns=node,
    )


def wait_until_reachable(a: Pod, b: Pod) -> None:
    """Both ways: a bridge port forwards only once its carrier is noticed, and a lost ARP costs a second."""
    for sender, receiver in ((a, b), (b, a)):
        with entered(receiver.netns):
            listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with entered(sender.netns):
            caller = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with listener, caller:
            listener.bind((receiver.address, 0))
            listener.settimeout(0.05)
            for _ in range(100):
                caller.sendto(b"there?", listener.getsockname())
                with contextlib.suppress(TimeoutError):
                    listener.recv(16)
                    break
            else:
                raise RuntimeError(f"{receiver.name} cannot be reached from {sender.name}")


def delays_ms(a: Pod, b: Pod, count: int, gap_s: float) -> list[float]:
    """One-way delays from a to b, by UDP; the receiving time is the kernel's."""
    delays: list[float] = []
    with contextlib.ExitStack() as stack:
        ends = []
        for pod in (a, b):
            with entered(pod.netns):
                ends.append(stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
            ends[-1].bind((pod.address, 0))
        ends[1].setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        ends[1].settimeout(1.0)

        def receive() -> None:
            with contextlib.suppress(TimeoutError):
                while len(delays) < count:
                    data, ((_, _, stamp),), _, _ = ends[1].recvmsg(64, 64)
                    seconds, nanoseconds = (int.from_bytes(stamp[i : i + 8], "little") for i in (0, 8))
                    delays.append((seconds * 10**9 + nanoseconds - int(data)) / 1e6)

        thread = threading.Thread(target=receive)
        thread.start()
        try:
            for _ in range(count):
                ends[0].sendto(str(time.time_ns()).encode(), ends[1].getsockname())
                time.sleep(gap_s)
        finally:
            thread.join()
    return delays


@dataclass
class Arrivals:
    """Datagrams numbered from 0 that were sent, and those that have come."""

    sent: int = 0
    came: set[int] = field(default_factory=set)

    def missing(self) -> int:
        """How many have not come."""
        return self.sent - len(self.came)


@contextlib.contextmanager
def numbered(
    a: Any, b: Any, *, ports: tuple[int, int] = (0, 0), gap_s: float = 0.001, tail_s: float = 0.5
) -> Iterator[Arrivals]:
    """Send datagrams from a to b for the duration of the body, and wait for the last ones."""
    with contextlib.ExitStack() as stack:
        ends = []
        for pod, port in zip((a, b), ports, strict=True):
            with entered(pod.netns):
                ends.append(stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
            ends[-1].bind((pod.address, port))
        sender, receiver = ends
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        receiver.settimeout(tail_s)
        arrivals, end = Arrivals(), threading.Event()

        def send() -> None:
            while not end.wait(gap_s):
                sender.sendto(arrivals.sent.to_bytes(4, "little"), receiver.getsockname())
                arrivals.sent += 1

        def receive() -> None:
            while not end.is_set():
                with contextlib.suppress(TimeoutError):
                    while True:
                        arrivals.came.add(int.from_bytes(receiver.recv(16), "little"))

        threads = [threading.Thread(target=run) for run in (send, receive)]
        for thread in threads:
            thread.start()
        try:
            yield arrivals
        finally:
            end.set()
            for thread in threads:
                thread.join()
