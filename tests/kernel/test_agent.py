"""The agent in a process of its own: pods and processes come and go, events are on disk before the end."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.kernel.bridged import Node
from tests.kernel.test_emulation import node
from ztprobe.agent.interface import Account
from ztprobe.agent.remote import AgentProcess
from ztprobe.errors import ZtprobeError
from ztprobe.events.tables import RINGS, ring_type
from ztprobe.experiment.record import save_events
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.profile.model import Profile
from ztprobe.rundir.batches import BATCHES_DIR
from ztprobe.rundir.store import RunDir

__all__ = ("node",)  # a fixture

ME = {os.getpid(): ("pod-a", "test")}
SENT_BYTES = 200_000
RESIDENT_BYTES, KERNEL_BYTES = 144 << 20, 64 << 20


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path / BATCHES_DIR, tmp_path / "state", tmp_path / "agent.log") as made:
        yield made


def take(connection: socket.socket) -> None:
    """All that the other side sends."""
    left = SENT_BYTES
    while left:
        left -= len(connection.recv(left))


def transfer(source: Pod, target: Pod) -> int:
    """Send some bytes and get as many back. :returns: the port that they went to."""
    with entered(target.netns):
        listener = socket.create_server((target.address, 0))
    port = int(listener.getsockname()[1])

    def receive() -> None:
        connection, _ = listener.accept()
        with connection:
            take(connection)
            connection.sendall(b"y" * SENT_BYTES)

    thread = threading.Thread(target=receive)
    thread.start()
    with entered(source.netns):
        sender = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with listener, sender:
        sender.connect((target.address, port))
        sender.sendall(b"x" * SENT_BYTES)
        take(sender)
        thread.join()
    return port


def tables(directory: Path, account: Account) -> dict[str, pd.DataFrame]:
    """What was saved; bursts and packets with the ports of their connections."""
    counted = save_events(RunDir(directory), account)
    found = {name: pd.read_parquet(directory / "events" / f"{name}.parquet") for name in counted}
    assert {name: len(table) for name, table in found.items()} == counted
    assert not (directory / BATCHES_DIR).exists()
    ports = found["connections"][["connection", "local_port", "remote_port"]].drop_duplicates("connection")
    return found | {name: found[name].merge(ports, how="left") for name in ("bursts", "packets")}


def of_port(table: pd.DataFrame, pod: str, port: int) -> pd.DataFrame:
    """A pod's rows of the connections to or from a port."""
    either = (table["local_port"] == port) | (table["remote_port"] == port)
    return table[(table["pod"] == pod) & either]


def sent_bytes(bursts: pd.DataFrame, pod: str, port: int) -> int:
    """What crossed a pod's eth0 to or from a port, half of it each way."""
    mine = of_port(bursts, pod, port)
    return int(mine[mine["hook"] == "eth"]["bytes"].sum()) // 2


def test_a_late_pod_is_seen_as_completely_as_the_first(
    node: Node, agent: AgentProcess, tmp_path: Path
) -> None:
    first, late = node.pods
    agent.prepare()
    agent.add_pod(first)
    agent.start()
    agent.watch(ME)
    transfer(first, late)
    agent.add_pod(late)
    agent.watch(ME)
    seen_port = transfer(late, first)
    account = agent.stop()
    assert not any(account.loss.values()), account.loss
    found = tables(tmp_path, account)
    assert sent_bytes(found["bursts"], late.name, seen_port) == SENT_BYTES
    assert sent_bytes(found["bursts"], first.name, seen_port) == SENT_BYTES
    setups = found["packets"][found["packets"]["kind"] == "setup"]
    for pod in node.pods:
        flags = of_port(setups, pod.name, seen_port)["tcp_flags"]
        assert (flags & 2).astype(bool).sum() == 2, pod  # SYN, and SYN with ACK
    sockets = found["bursts"][(found["bursts"]["hook"] == "sock") & (found["bursts"]["tgid"] > 0)]
    assert set(sockets["process"]) == {"pod-a/test"}
    assert set(sockets["pod"]) == {"pod-a", "pod-b"}


def test_a_removed_pod_is_seen_no_longer_and_may_come_back(
    node: Node, agent: AgentProcess, tmp_path: Path
) -> None:
    a, b = node.pods
    agent.prepare()
    for pod in node.pods:
        agent.add_pod(pod)
    agent.start()
    agent.remove_pod(b)
    unseen_port = transfer(a, b)
    agent.add_pod(b)
    seen_port = transfer(a, b)
    assert agent.status().problem is None
    account = agent.stop()
    assert not any(account.loss.values()), account.loss
    bursts = tables(tmp_path, account)["bursts"]
    assert sent_bytes(bursts, a.name, unseen_port) == SENT_BYTES
    assert sent_bytes(bursts, b.name, unseen_port) == 0
    assert sent_bytes(bursts, b.name, seen_port) == SENT_BYTES


def test_a_process_id_that_comes_back_goes_by_the_name_of_its_time(
    node: Node, agent: AgentProcess, tmp_path: Path
) -> None:
    agent.prepare()
    for pod in node.pods:
        agent.add_pod(pod)
    agent.start()
    agent.watch(ME)
    before = transfer(*node.pods)
    agent.watch({os.getpid(): ("pod-b", "again")})
    after = transfer(*node.pods)
    bursts = tables(tmp_path, agent.stop())["bursts"]
    sockets = bursts[(bursts["hook"] == "sock") & (bursts["tgid"] > 0)]
    assert set(sockets[sockets["remote_port"] == before]["process"]) == {"pod-a/test"}
    assert set(sockets[sockets["remote_port"] == after]["process"]) == {"pod-b/again"}
    assert bursts["first_ns"].is_monotonic_increasing


def anonymous_bytes(process: Path) -> int:
    """What is neither a file's nor the kernel's."""
    lines = (process / "smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))


@pytest.mark.long
def test_memory_is_bounded_and_does_not_grow_with_what_is_seen(node: Node, agent: AgentProcess) -> None:
    agent.prepare()
    for pod in node.pods:
        agent.add_pod(pod)
    agent.start()
    agent.watch(ME)
    process = Path(f"/proc/{agent._process.pid}")
    # What is made once (an allocator's arenas, a writer's buffers) is there after two of them. The ring
    # buffers' pages are no part of it: each of them is resident once it has been written to.
    own_bytes = []
    for _ in range(40):
        for _ in range(300):
            transfer(*node.pods)
        own_bytes.append(anonymous_bytes(process))
    loaded = (process / "maps").read_text()
    assert "/numpy/" in loaded
    assert "/pandas/" not in loaded  # an agent on a node passes events on, it does not analyse them
    account = agent.stop()
    memory = account.memory
    # Read from the kernel: nobody has put a qdisc there, and no profile was asked for.
    assert {name: found["kind"] for name, found in account.observed.items()} == dict.fromkeys(
        ("pod-a", "pod-b"), "noqueue"
    )
    assert memory["resident_bytes"] < RESIDENT_BYTES
    assert 1 << 20 < memory["kernel_maps_bytes"] < KERNEL_BYTES
    # A batch that is being collected comes and goes by 15 MiB; who kept what was seen would hold all of it.
    seen_bytes = account.events_seen * min(ring_type(ring).itemsize for ring in RINGS)
    assert min(own_bytes[30:]) - min(own_bytes[3:10]) < seen_bytes / 3, own_bytes


def test_a_profile_is_put_on_measured_and_taken_off(node: Node, tmp_path: Path) -> None:
    batches, state, log = tmp_path / BATCHES_DIR, tmp_path / "state", tmp_path / "agent.log"
    with AgentProcess(batches, state, log, probes=False) as agent:
        agent.prepare()
        for pod in node.pods:
            agent.add_pod(pod)
        assert agent.start() == {}
        agent.apply(Profile(name="slow", rate_mbit=20), seed=1)
        found = agent.measure("pod-a", ["pod-b"])
        assert (found.backend, found.problems) == ("tbf", [])
        assert found.measured["rate_mbit"] == pytest.approx(20, rel=0.1)
        agent.remove_pod(node.pods[1])
        assert agent.status().problem is None
        with entered(node.pods[0].netns):
            subprocess.run(["tc", "qdisc", "del", "dev", "eth0", "root"], check=True)
        problem = "slow is in force no longer: the tbf on eth0 of pod-a has been removed by somebody else"
        assert agent.status().problem == problem
        account = agent.stop()
        assert account.problem == problem  # beside all that was seen until then
        assert account.observed["pod-a"]["kind"] != "tbf"  # never what was declared
    for pod in node.pods:
        with entered(pod.netns):
            shown = subprocess.run(["tc", "qdisc", "show", "dev", "eth0"], capture_output=True, text=True)
        assert "tbf" not in shown.stdout


def test_a_refusal_is_the_agent_s_own_words_and_a_dead_agent_is_named(
    node: Node, agent: AgentProcess, tmp_path: Path
) -> None:
    agent.prepare()
    agent.add_pod(node.pods[0])
    with entered(node.pods[0].netns):
        subprocess.run(["tc", "qdisc", "add", "dev", "eth0", "root", "handle", "9:", "pfifo"], check=True)
    with pytest.raises(ZtprobeError, match="pod-a"):
        agent.apply(Profile(name="slow", rate_mbit=20), seed=1)
    agent._process.kill()
    agent._process.wait()
    with pytest.raises(ZtprobeError, match=r"ended before its time \(see .*agent\.log\)"):
        agent.status()


def test_it_ends_with_whom_it_works_for_and_leaves_nothing(node: Node, tmp_path: Path) -> None:
    program = f"""
import os, sys
from pathlib import Path
from ztprobe.agent.interface import Account
from ztprobe.agent.memory import held
from ztprobe.agent.remote import AgentProcess
from ztprobe.pods.model import Pod
from ztprobe.profile.model import Profile
here = Path({str(tmp_path)!r})
agent = AgentProcess(here / "batches", here, here / "log")
agent.prepare()
agent.add_pod(Pod.from_dict({node.pods[0].as_dict()!r}))
agent.start()
agent.apply(Profile(name="slow", rate_mbit=20), seed=1)
print(agent._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError):
        while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert not Path(f"/proc/{pid}/stat").exists()
    with entered(node.pods[0].netns):
        shown = subprocess.run(["tc", "qdisc", "show", "dev", "eth0"], capture_output=True, text=True)
    assert "tbf" not in shown.stdout
