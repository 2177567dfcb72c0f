"""Deployments that ztprobe has not brought up: started by hand, in namespaces or on one loopback."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.fl_processes import REPO_DIR, Process, Start, start_client, start_server
from ztprobe.kernelnet.netlink import create_netns, netlink, remove_netns
from ztprobe.kernelnet.netns import entered

__all__ = (
    "SERVICE",
    "Deployment",
    "Federation",
    "deployed",
    "federation",
    "places",
    "service",
    "switch_ipv6_on",
)

Place = tuple[Path | None, str]
_LOOPBACK: Place = (None, "127.0.0.1")
_NO_DUPLICATES = 2  # IFA_F_NODAD: an address can be used at once
SERVICE = ("10.96.0.9", 80)
_GATEWAY = "10.98.0.254"
_BURST_BYTES, _QUEUE_BYTES = 20_000, 4_000_000


@dataclass(frozen=True)
class Deployment:
    """A server and its clients, which train."""

    server: Process
    clients: tuple[Process, ...]
    port: int


def deployed(start: Start, *, clients: int, rounds: int, where: Sequence[Place] | None = None) -> Deployment:
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


@dataclass
class Federation:
    """`tests.e2e.small_federation`, as processes."""

    directory: Path
    places: Sequence[Place]
    bytes: int
    server: subprocess.Popen[bytes]
    clients: list[subprocess.Popen[bytes]] = field(default_factory=list)
    # The server's port -> what clients call, asked once; None: the server's own address.
    call: Callable[[int], str] | None = None
    target: str = ""  # what they call

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.directory / "server.log"

    @property
    def port(self) -> int:
        """Where the server listens."""
        give_up = time.monotonic() + 20
        while not (self.log.exists() and b"listening" in self.log.read_bytes()):
            assert time.monotonic() < give_up, "the server does not listen"
            time.sleep(0.02)
        return int(json.loads(self.log.read_text().splitlines()[0])["port"])

    def add_client(self, compute_s: float = 0.02, *, forks: bool = False) -> subprocess.Popen[bytes]:
        """One more; it takes the next place."""
        netns, _ = self.places[min(len(self.clients) + 1, len(self.places) - 1)]
        if not self.target:
            self.target = self.call(self.port) if self.call else f"{self.places[0][1]}:{self.port}"
        more = ["forks"] if forks else []
        with entered(netns):
            self.clients.append(_played("client", self.target, str(self.bytes), str(compute_s), *more))
        return self.clients[-1]


def _played(*arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
    with log.open("wb") if log is not None else contextlib.nullcontext() as out:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.small_federation", *arguments],
            cwd=REPO_DIR,
            stdin=subprocess.DEVNULL,
            stdout=out or subprocess.DEVNULL,
        )


@contextlib.contextmanager
def federation(
    directory: Path,
    *,
    clients: int = 2,
    rounds: int = 1000,
    where: Sequence[Place] = (_LOOPBACK,),
    pause_s: float = 0.1,
    size: int = 300_000,
    call: Callable[[int], str] | None = None,
) -> Iterator[Federation]:
    """Rounds go on until the body is through; all of it is ended then.

    :param call: see `Federation`.
    """
    directory.mkdir(exist_ok=True)
    netns, address = where[0]
    with entered(netns):
        numbers = map(str, (rounds, clients, size, pause_s))
        server = _played("server", address, *numbers, log=directory / "server.log")
    made = Federation(directory, where, size, server, call=call)
    try:
        for number in range(clients):
            made.add_client(forks=number > 0)
        yield made
    finally:
        for process in (made.server, *made.clients):  # clients end with their server
            process.kill()
            process.wait()


@contextlib.contextmanager
def places(count: int, *, ipv6: bool = False, rate_mbit: int | None = None) -> Iterator[list[Place]]:
    """Namespaces with an address each, joined by a bridge in one more; removed at the end.

    :param ipv6: it is one of IPv6, and there is none of IPv4.
    :param rate_mbit: what goes to all but the first, and what they send, passes at this rate and no faster.
    """
    tag = f"ztp-t{secrets.token_hex(3)}"
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Path:
            path = create_netns(name)
            stack.callback(remove_netns, name)
            return path

        node = make(f"{tag}n")
        net = "fd00:98::" if ipv6 else "10.98.0."
        found = [(make(f"{tag}{number}"), f"{net}{number + 1}") for number in range(count)]
        with netlink(node) as ipr:
            ipr.link("add", ifname="br0", kind="bridge")
            (bridge,) = ipr.link_lookup(ifname="br0")
            ipr.link("set", index=bridge, state="up")
            for number, (path, _) in enumerate(found):
                peer = {"ifname": "net0", "net_ns_fd": str(path)}  # not every runtime calls it eth0
                ipr.link("add", ifname=f"port{number}", kind="veth", peer=peer)
                (index,) = ipr.link_lookup(ifname=f"port{number}")
                ipr.link("set", index=index, master=bridge, state="up")
                if rate_mbit is not None and number:
                    _limit(ipr, index, rate_mbit)
        for number, (path, address) in enumerate(found):
            if ipv6:
                switch_ipv6_on(path, "lo", "net0")
            with netlink(path) as ipr:
                (index,) = ipr.link_lookup(ifname="net0")
                without_waiting = {"flags": _NO_DUPLICATES} if ipv6 else {}
                ipr.addr("add", index=index, address=address, prefixlen=64 if ipv6 else 24, **without_waiting)
                ipr.link("set", index=1, state="up")
                ipr.link("set", index=index, state="up")
                if rate_mbit is not None and number:
                    _limit(ipr, index, rate_mbit)
        yield list(found)


def service(where: Sequence[Place], port: int) -> str:
    """Have `SERVICE` be an address of the first of some `places`, as kube-proxy does: translated on the way.

    :param port: where the server listens there.
    :returns: what its clients call.
    """
    (server, address), *clients = where
    assert server is not None
    node = server.with_name(f"{server.name[:-1]}n")
    rule = f"ip daddr {SERVICE[0]} tcp dport {SERVICE[1]} dnat to {address}:{port}"
    chain = f"type nat hook prerouting priority -100\n{rule}"
    with entered(node):
        subprocess.run(["ip", "address", "add", f"{_GATEWAY}/24", "dev", "br0"], check=True)
        for setting, value in (("ip_forward", "1"), ("conf/br0/send_redirects", "0")):
            Path(f"/proc/sys/net/ipv4/{setting}").write_text(value)
        subprocess.run(["nft", f"table ip service {{\nchain in {{\n{chain}\n}}\n}}"], check=True)
    for netns, _ in clients:
        with entered(netns):
            subprocess.run(["ip", "route", "add", SERVICE[0], "via", _GATEWAY], check=True)
    with entered(server):
        for _, back in clients:  # through the node, or nobody would translate the answers
            subprocess.run(["ip", "route", "add", back, "via", _GATEWAY], check=True)
    return f"{SERVICE[0]}:{SERVICE[1]}"


def switch_ipv6_on(netns: Path, *interfaces: str) -> None:
    """In a namespace of a machine that may have it switched off."""
    with entered(netns):
        for name in interfaces:
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("0")


def _limit(ipr: Any, index: int, rate_mbit: int) -> None:
    ipr.tc("add", "tbf", index, rate=rate_mbit * 125_000, burst=_BURST_BYTES, limit=_QUEUE_BYTES)
