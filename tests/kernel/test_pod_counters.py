"""What pods run into, by the kernel's own counters."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ztprobe.agent.pod_counters import PodCounters
from ztprobe.kernelnet.netns import inode
from ztprobe.pods.model import Pod
from ztprobe.runtime.local import cgroups

HERE = Path("/proc/self/ns/net")
WHO = ("a", "main")


def pod() -> Pod:
    """This machine's own namespace as a pod's."""
    there = {"netns": HERE, "node_netns": HERE, "netns_inode": inode(HERE)}
    return Pod(name="a", namespace="fl", address="127.0.0.1", interface="lo", host_interface="", **there)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start Python programs that say so once they are there; they are ended afterwards."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(program: str, *, joins: tuple[Path, ...] = ()) -> subprocess.Popen[bytes]:
        join = "".join(f"open({str(path)!r}, 'w').write('0');" for path in joins)
        text = f"{join}print(flush=True);{program}"
        process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()


def main_of(sample: dict[str, Any]) -> dict[str, Any]:
    return dict(sample["containers"]["/".join(WHO)])


def test_a_stopped_process_and_its_descriptors_show(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = start("import time; time.sleep(60)")
    counters = PodCounters()
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (100, 100))
    before = main_of(counters.sample([pod()], {process.pid: WHO}))
    assert (before["stopped"], before["descriptor_limit"]) == (False, 100)
    assert before["descriptors"] == len(os.listdir(f"/proc/{process.pid}/fd"))
    assert before["full_filesystems"] == []
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    assert main_of(counters.sample([pod()], {process.pid: WHO}))["stopped"]


def test_a_full_accept_queue_is_counted_in_its_pod() -> None:
    counters = PodCounters()
    before = counters.sample([pod()], {})["pods"]["a"]
    assert before["ephemeral_ports"] > before["sockets"]
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        clients = [socket.socket() for _ in range(4)]
        for one in clients:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        for one in clients:
            one.close()
    after = counters.sample([pod()], {})["pods"]["a"]
    assert after["listen_overflows"] > before["listen_overflows"]


def test_that_a_process_was_out_of_memory_is_told_after_its_end(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    tree = cgroups.Tree(cgroups.detect(), f"ztp-t{secrets.token_hex(4)}")
    counters = PodCounters()
    try:
        joins = tree.create("a", "main", memory_bytes=32 << 20)
        wait = "import time; time.sleep(0.5); b'x' * (1 << 30)"
        process = start(wait, joins=joins)
        before = main_of(counters.sample([pod()], {process.pid: WHO}))
        assert (before["oom_kills"], before["memory_limit_bytes"]) == (0, 32 << 20)
        assert process.wait(20) == -signal.SIGKILL
        assert main_of(counters.sample([pod()], {}))["oom_kills"] == 1
    finally:
        for top in tree.tops:
            cgroups.remove(top)
