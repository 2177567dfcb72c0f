"""Two bare pods for probe tests: namespaces joined by a veth pair, gone again at the end."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ztprobe.kernelnet.netlink import create_netns, netlink, remove_netns
from ztprobe.kernelnet.netns import entered


@dataclass(frozen=True)
class TestPod:
    """A namespace with eth0 and an address."""

    __test__ = False

    name: str
    netns: Path
    address: str


@contextlib.contextmanager
def two_pods(*, gso: bool = True) -> Iterator[tuple[TestPod, TestPod]]:
    """A and B, 10.99.0.1 and 10.99.0.2, without IPv6.

    :param gso: several segments may leave as one packet; False: each by itself, as on a network.
    """
    tag = secrets.token_hex(3)
    made: list[TestPod] = []
    try:
        for letter, address in (("a", "10.99.0.1"), ("b", "10.99.0.2")):
            name = f"ztp-t{tag}{letter}"
            made.append(TestPod(name, create_netns(name), address))
        a, b = made
        with netlink(a.netns) as ipr:
            ipr.link("add", ifname="eth0", kind="veth", peer={"ifname": "eth0", "net_ns_fd": str(b.netns)})
        for pod in made:
            with netlink(pod.netns) as ipr:
                (index,) = ipr.link_lookup(ifname="eth0")
                ipr.addr("add", index=index, address=pod.address, prefixlen=24)
                ipr.link("set", index=1, state="up")
                ipr.link("set", index=index, state="up")
                if not gso:
                    ipr.link("set", index=index, gso_max_segs=1)
        yield a, b
    finally:
        for pod in made:
            remove_netns(pod.name)


def brief_connections(pods: tuple[TestPod, TestPod], count: int, port: int) -> list[int]:
    """Open connections from the first pod to the second one after the other, and close each at once.

    :returns: the ports that they came from.
    """
    a, b = pods
    ports = []
    with entered(b.netns):
        listener = socket.create_server((b.address, port), backlog=64)
    with listener:
        for _ in range(count):
            with entered(a.netns):
                client = socket.create_connection((b.address, port))
            ports.append(int(client.getsockname()[1]))
            accepted, _ = listener.accept()
            client.close()
            accepted.close()
    return ports
