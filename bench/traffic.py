"""Short connections, as many as the programs must follow without a lost event."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.startup import Watch
from tests.kernel.pods import TestPod
from ztprobe.events.kinds import Direction, TcpState, name_of
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod

__all__ = ("Connections", "Flood", "flood", "forked", "measure_connections", "tcp_counters")

_PORT = 5201
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_BATCH = 20
_SETTLE_S = 0.3


@dataclass(kw_only=True)
class Flood:
    """A flood of short connections, as the kernel counted it."""

    seconds: float
    opened: int  # TCP ActiveOpens of the connecting pod
    accepted: int  # TCP PassiveOpens of the other
    retransmitted: int  # both pods, by TCP's own count; a repeated SYN is no connection more

    @property
    def rate(self) -> float:
        """Connections a second."""
        return self.opened / self.seconds


@dataclass(kw_only=True)
class Connections(Flood):
    """... and what the probes saw of it."""

    seen: dict[str, int]
    loss: dict[str, int]
    events: int

    @property
    def missing(self) -> int:
        """Connections without one of the events that each of them must have."""
        truth = {"syn": self.opened, "client_established": self.opened, "server_established": self.accepted}
        return sum(abs(count - self.seen[name]) for name, count in truth.items())


def tcp_counters(netns: Path) -> dict[str, int]:
    """The kernel's own account of TCP in a namespace (Tcp: and TcpExt: of /proc/net/snmp and netstat)."""
    with entered(netns):
        text = "".join(Path(f"/proc/thread-self/net/{name}").read_text() for name in ("snmp", "netstat"))
    lines = [line.split() for line in text.splitlines() if line.startswith(("Tcp:", "TcpExt:"))]
    found = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        found |= {name: int(value) for name, value in zip(names[1:], values[1:], strict=True)}
    return found


def _serve(address: str, port: int) -> None:
    listener = socket.create_server((address, port), backlog=4096, reuse_port=True)
    while True:
        accepted, _ = listener.accept()
        accepted.close()


def _connect(address: str, port: int, seconds: float, rate: float) -> None:
    peer = (address, port)
    started_s = time.monotonic()
    done = 0
    while (now_s := time.monotonic()) - started_s < seconds:
        if done > (now_s - started_s) * rate:
            time.sleep(0.0005)
            continue
        for _ in range(_BATCH):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            sock.connect(peer)
            sock.close()
        done += _BATCH


@contextlib.contextmanager
def forked(netns: Path, target: Callable[[], None]) -> Iterator[int]:
    """A child that does ``target`` inside the namespace, killed at the end; yields its process id."""
    child = os.fork()
    if child == 0:
        try:
            with entered(netns):
                target()
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def flood(a: TestPod | Pod, b: TestPod | Pod, seconds: float, rate: float) -> Flood:
    """Open and reset connections from one pod to the other at up to ``rate`` a second."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(forked(b.netns, lambda: _serve(b.address, _PORT)))
        time.sleep(_SETTLE_S)
        before = [tcp_counters(pod.netns) for pod in (a, b)]
        started_s = time.monotonic()
        client = stack.enter_context(forked(a.netns, lambda: _connect(b.address, _PORT, seconds, rate)))
        os.waitpid(client, 0)
        took_s = time.monotonic() - started_s
        time.sleep(_SETTLE_S)
        after = [tcp_counters(pod.netns) for pod in (a, b)]
    return Flood(
        seconds=took_s,
        opened=after[0]["ActiveOpens"] - before[0]["ActiveOpens"],
        accepted=after[1]["PassiveOpens"] - before[1]["PassiveOpens"],
        retransmitted=sum(x["RetransSegs"] - y["RetransSegs"] for x, y in zip(after, before, strict=True)),
    )


def measure_connections(pods: tuple[TestPod, TestPod], seconds: float, rate: float) -> Connections:
    """The same with probes on both pods."""
    a, b = pods
    with Watch(pods) as watch:
        found = flood(a, b, seconds, rate)
        watch.collector.stop()
        tables, loss = watch.collector.tables(), watch.collector.loss()
        events = watch.collector.events_seen
    packets, states = tables["packets"], tables["state_changes"]
    syns = packets[(packets["kind"] == "setup") & (packets["tcp_flags"] & 18 == 2)]
    up = states[states["new_state"] == name_of(TcpState.ESTABLISHED)]
    return Connections(
        **dataclasses.asdict(found),
        seen={
            # A repeated SYN is the same connection's.
            "syn": syns["connection"][
                (syns["pod"] == a.name) & (syns["direction"] == Direction.TX)
            ].nunique(),
            "client_established": int((up["pod"] == a.name).sum()),
            "server_established": int((up["pod"] == b.name).sum()),
        },
        loss=loss,
        events=events,
    )
