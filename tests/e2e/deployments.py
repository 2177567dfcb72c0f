"""A deployment that ztprobe has not brought up: the workload started by hand, in namespaces or on loopback."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.fl_processes import Process, Start, start_client, start_server
from ztprobe.kernelnet.netlink import create_netns, netlink, remove_netns

__all__ = ("Deployment", "deployed", "places")


@dataclass(frozen=True)
class Deployment:
    """A server and its clients, which train."""

    server: Process
    clients: tuple[Process, ...]
    port: int


def deployed(
    start: Start, *, clients: int, rounds: int, where: list[tuple[Path, str]] | None = None
) -> Deployment:
    """Start one.

    :param where: a namespace and an address for the server and for each client; None: all on loopback.
    """
    common = {"FL_CLIENTS": str(clients), "FL_ROUNDS": str(rounds), "FL_EVAL_EVERY": "100"}
    netns = [place for place, _ in where] if where else [None] * (clients + 1)
    listen = f"{where[0][1]}:0" if where else "127.0.0.1:0"
    server, _ = start_server(start, netns=netns[0], FL_LISTEN=listen, **common)
    port = int(server.until("run_start")["port"])
    address = f"{listen.rpartition(':')[0]}:{port}"
    started = [start_client(start, i, address, netns=netns[i + 1], **common) for i in range(clients)]
    return Deployment(server, tuple(started), port)


@contextlib.contextmanager
def places(count: int) -> Iterator[list[tuple[Path, str]]]:
    """Namespaces with an address each, joined by a bridge in one more; removed at the end."""
    tag = f"ztp-t{secrets.token_hex(3)}"
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Path:
            path = create_netns(name)
            stack.callback(remove_netns, name)
            return path

        node = make(f"{tag}n")
        found = [(make(f"{tag}{number}"), f"10.98.0.{number + 1}") for number in range(count)]
        with netlink(node) as ipr:
            ipr.link("add", ifname="br0", kind="bridge")
            (bridge,) = ipr.link_lookup(ifname="br0")
            ipr.link("set", index=bridge, state="up")
            for number, (path, _) in enumerate(found):
                peer = {"ifname": "net0", "net_ns_fd": str(path)}  # not every runtime calls it eth0
                ipr.link("add", ifname=f"port{number}", kind="veth", peer=peer)
                (index,) = ipr.link_lookup(ifname=f"port{number}")
                ipr.link("set", index=index, master=bridge, state="up")
        for path, address in found:
            with netlink(path) as ipr:
                (index,) = ipr.link_lookup(ifname="net0")
                ipr.addr("add", index=index, address=address, prefixlen=24)
                ipr.link("set", index=1, state="up")
                ipr.link("set", index=index, state="up")
        yield found
