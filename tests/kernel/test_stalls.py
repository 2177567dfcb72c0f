"""Stalls between two pods, each brought about for real: what is said of each, and of long training."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel.bridged import Node, bridged_node
from tests.programs import program
from ztprobe.agent.stall_snapshot import look
from ztprobe.agent.stalls import Stall, StallWatch, stall_words
from ztprobe.kernelnet.netlink import netlink
from ztprobe.kernelnet.netns import entered

PATIENCE = float(os.environ.get("ZTPROBE_TEST_PATIENCE", "1"))
AFTER_S = 3.0 * PATIENCE
PORT = 50051
# Answers each block with one of its own, until told otherwise by a line of standard input.
_SERVER = f"""
import socket, sys, time
listener = socket.create_server(("10.99.0.1", {PORT}))
print("ready", flush=True)
peer, _ = listener.accept()
while True:
    data = b""
    while len(data) < 65536:
        more = peer.recv(65536)
        if not more: time.sleep(600)
        data += more
    peer.sendall(data)
"""
_CLIENT = f"""
import select, socket, sys, time
peer = socket.create_connection(("10.99.0.1", {PORT}))
print("ready", flush=True)
how = "talk"
while True:
    if select.select([sys.stdin], [], [], 0.05)[0]:
        how = sys.stdin.readline().strip()
    if how in ("talk", "once"):
        peer.sendall(b"x" * 65536)
        data = b""
        while how == "talk" and len(data) < 65536: data += peer.recv(65536)
        if how == "once": how = "silent"
    elif how == "fill":
        while True: peer.sendall(b"x" * 65536)
    elif how == "train":
        sum(range(1_000_000))
    elif how == "connect":
        socket.create_connection(("10.99.0.1", {PORT + 1}))
"""
_NFT = "table ip t {{\n chain c {{\n type filter hook input priority 0; tcp {} drop\n }}\n}}\n"


class Talk:
    """A server in pod-a and a client in pod-b that exchange blocks."""

    def __init__(self, node: Node) -> None:
        self.server_pod, self.client_pod = node.pods
        self.server = self._start(self.server_pod, _SERVER)
        self.client = self._start(self.client_pod, _CLIENT)
        self.watch = StallWatch(AFTER_S)

    def _start(self, pod: Any, text: str) -> subprocess.Popen[str]:
        with entered(pod.netns):
            process = subprocess.Popen(
                [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def tell(self, how: str) -> None:
        assert self.client.stdin is not None
        self.client.stdin.write(f"{how}\n")
        self.client.stdin.flush()

    def stall(self, within_s: float) -> Stall | None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            running = {self.server.pid: ("pod-a", "server"), self.client.pid: ("pod-b", "client")}
            processes = {pid: who for pid, who in running.items() if os.path.exists(f"/proc/{pid}/exe")}
            found = self.watch.take(
                look((self.server_pod, self.client_pod), processes),
                waiting="pod-a",
                waits_for=["pod-b"],
                round_number=3,
            )
            if found is not None:
                print(stall_words(found))
                return found
            time.sleep(AFTER_S / 4)
        return None

    def close(self) -> None:
        for process in (self.server, self.client):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.communicate()


@pytest.fixture
def talk() -> Iterator[Talk]:
    with bridged_node() as node:
        made = Talk(node)
        try:
            time.sleep(0.3)
            yield made
        finally:
            made.close()


def drop(talk: Talk, match: str) -> None:
    with entered(talk.server_pod.netns):
        subprocess.run([program("nft"), "-f", "-"], input=_NFT.format(match), text=True, check=True)


def test_packets_that_a_filter_drops(talk: Talk) -> None:
    drop(talk, f"dport {PORT}")
    stall = talk.stall(4 * AFTER_S)
    assert stall is not None
    (one,) = stall.connections
    assert one.state == "retransmitting into nothing"
    assert one.last_data_age_s is not None
    assert one.last_data_age_s == pytest.approx(stall.at_s - stall.since_s, abs=AFTER_S)
    # 15 retransmissions take a quarter of an hour, whatever the round trip.
    assert 600 < stall.timeouts[0].in_s < 1200
    assert "pod-a waits for pod-b" in stall_words(stall)


def test_a_client_that_is_stopped(talk: Talk) -> None:
    os.kill(talk.client.pid, signal.SIGSTOP)
    stall = talk.stall(4 * AFTER_S)
    assert stall is not None
    assert stall.states == {"pod-b": "stopped by a signal"}
    assert stall.connections[0].state in ("established and silent", "not read")
    assert stall.timeouts == ()
    assert "no timeout is known that will end it" in stall_words(stall)


def test_a_reader_that_does_not_read(talk: Talk) -> None:
    talk.tell("fill")  # the server answers until nobody takes its answers, and then reads no more itself
    stall = talk.stall(6 * AFTER_S)
    assert stall is not None
    assert stall.connections[0].state == "zero window"
    assert "pod-b does not read, " in stall.connections[0].detail


def test_a_host_that_has_vanished(talk: Talk) -> None:
    with netlink(talk.client_pod.netns) as ipr:
        (index,) = ipr.link_lookup(ifname="eth0")
        ipr.link("set", index=index, state="down")
    talk.client.kill()
    stall = talk.stall(4 * AFTER_S)
    assert stall is not None
    assert stall.states == {"pod-b": "has no process"}
    # The dead client's FIN gets nowhere, or is given up already: the server knows of neither.
    assert stall.connections[0].state in (
        "retransmitting into nothing",
        "gone at one end only",
        "closed by one side",
    )


def test_a_connection_that_nobody_answers(talk: Talk) -> None:
    drop(talk, f"dport {PORT + 1}")
    talk.tell("connect")
    stall = talk.stall(4 * AFTER_S)
    assert stall is not None
    assert {one.state for one in stall.connections} == {"no answer to SYN", "established and silent"}
    assert stall.connections[0].target == f"pod-a:{PORT + 1}"
    assert stall.timeouts[0].in_s < 200  # six SYNs are repeated


@pytest.mark.long
def test_training_and_talking_are_no_stall(talk: Talk) -> None:
    assert talk.stall(1.5 * AFTER_S) is None
    talk.tell("train")
    assert talk.stall(2 * AFTER_S) is None
