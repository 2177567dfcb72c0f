"""Networks for a deployment of processes: one namespace's loopback, or a namespace each on a bridge.

Pods, with a network profile, policies and proxies, are in `tests.frameworks.pods`.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ztprobe.kernelnet.netlink import create_netns, netlink, remove_netns

__all__ = ("KINDS", "Place", "network")

KINDS = ("host", "loopback", "bridged")


@dataclass(frozen=True)
class Place:
    """Where a process runs: its network namespace (None: the machine's own) and the address of its host."""

    netns: Path | None
    address: str

    def command(self, *arguments: str) -> list[str]:
        """The command, run in this namespace; mounts stay as they are."""
        if self.netns is None:
            return list(arguments)
        return ["nsenter", f"--net={self.netns}", "--", *arguments]


@contextlib.contextmanager
def network(kind: str, clients: int) -> Iterator[tuple[Place, list[Place]]]:
    """:returns: the server's place and one for each client; namespaces go away with the context

    ``host``: the machine's own loopback; ``loopback``: that of one new namespace; ``bridged``: every
    process in a namespace of its own, veth to a bridge in another one.
    """
    if kind == "host":
        place = Place(None, "127.0.0.1")
        yield place, [place] * clients
        return
    tag = f"ztp-f{secrets.token_hex(3)}"
    with contextlib.ExitStack() as stack:

        def namespace(name: str) -> Path:
            path = create_netns(f"{tag}{name}")
            stack.callback(remove_netns, f"{tag}{name}")
            with netlink(path) as ipr:
                ipr.link("set", index=1, state="up")
            return path

        if kind == "loopback":
            place = Place(namespace("l"), "127.0.0.1")
            yield place, [place] * clients
            return
        node = namespace("n")
        with netlink(node) as ipr:
            ipr.link("add", ifname="br0", kind="bridge")
            (bridge,) = ipr.link_lookup(ifname="br0")
            ipr.link("set", index=bridge, state="up")
        places = []
        for i in range(clients + 1):
            place = Place(namespace("s" if i == 0 else f"c{i}"), f"10.98.0.{i + 1}")
            _connect(node, place, f"veth{i}")
            places.append(place)
        # A bridge's port forwards only once its carrier has been noticed.
        time.sleep(0.5)
        yield places[0], places[1:]


def _connect(node: Path, place: Place, interface: str) -> None:
    assert place.netns is not None
    with netlink(node) as ipr:
        peer = {"ifname": "eth0", "net_ns_fd": str(place.netns)}
        ipr.link("add", ifname=interface, kind="veth", peer=peer)
        (bridge,) = ipr.link_lookup(ifname="br0")
        (index,) = ipr.link_lookup(ifname=interface)
        ipr.link("set", index=index, master=bridge, state="up")
    with netlink(place.netns) as ipr:
        (index,) = ipr.link_lookup(ifname="eth0")
        ipr.addr("add", index=index, address=place.address, prefixlen=24)
        ipr.link("set", index=index, state="up")
