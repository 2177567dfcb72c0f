"""`ztprobe profile verify` where policies are in force, and the causes that it names."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel import workload_stub
from tests.kernel.bridged import numbered
from tests.kernel.live_run import PATIENCE, Cluster, cluster, profile_file
from ztprobe import paths
from ztprobe.conformance.policy_bypass import opened
from ztprobe.kernelnet.netlink import remove_netns
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.runtime.local.runtime import LocalRuntime

__all__ = ("cluster",)  # the fixture

CLIENTS = ("-l", "app=fl-client")


@pytest.fixture
def secured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalRuntime]:
    """A run under sec3 that goes on: policies and sidecars in force, the server waiting."""
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    runtime = workload_stub.runtime(tmp_path, level=3)
    try:
        runtime.create()
        runtime.secure()
        runtime.start_server()
        yield runtime
    finally:
        ztprobe("profile", "clear", fails=None)
        runtime.down()


def command(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ztprobe", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=paths.REPO_DIR,
        env={**os.environ, "ZTPROBE_STATE_DIR": str(paths.STATE_DIR)},
    )


def ztprobe(*words: str, fails: int | None = 0) -> str:
    process = command(*words)
    out, err = process.communicate(timeout=120 * PATIENCE)
    assert fails in (None, process.returncode), (words, out, err)
    return out


def table(runtime: LocalRuntime) -> str:
    """The policies' table with all its counters."""
    with entered(runtime.node_netns):
        words = ["nft", "list", "table", "ip", "ztprobe_policy"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def rules(runtime: LocalRuntime) -> list[str]:
    """The same without what was counted: probes still under way find no socket, which ICMP then says."""
    return re.sub(r"elements = \{[^}]*\}|packets \d+ bytes \d+", "", table(runtime)).split()


@pytest.mark.parametrize("name", ["net1", "net5"])
def test_policies_neither_stop_nor_count_probes(secured: LocalRuntime, name: str) -> None:
    before = table(secured)
    assert "counter drop_egress" in before
    ztprobe("profile", "apply", name, *CLIENTS, "--direction", "both")
    (verdict,) = json.loads(ztprobe("profile", "verify", "--probes", "600", "--json"))
    assert verdict["passed"], verdict["problems"]
    assert len(verdict["directions"]) == 4
    ztprobe("profile", "clear")
    assert table(secured) == before
    assert sorted(path.name for path in paths.STATE_DIR.iterdir() if path.is_dir()) == [secured._run_id]
    # The policies are in force as before, and the run goes on.
    assert all(proof.passed for proof in secured.prove().network_policy)


@contextlib.contextmanager
def bound(pod: Pod, port: int = 0) -> Iterator[socket.socket]:
    with entered(pod.netns):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.bind((pod.address, port))
        made.settimeout(0.3)
        yield made


def passes(sender: socket.socket, receiver: socket.socket) -> bool:
    sender.sendto(b"x", receiver.getsockname())
    try:
        return receiver.recv(8) == b"x"
    except TimeoutError:
        return False


def test_the_way_is_for_our_sockets_alone_and_closes(secured: LocalRuntime) -> None:
    before = table(secured)
    server, client = secured.pods[:2]
    with bound(client) as ours, bound(server) as theirs, bound(client) as other, bound(server) as port:
        flow = (*ours.getsockname(), *theirs.getsockname())
        assert not passes(ours, theirs)
        dropped = table(secured)
        assert dropped != before
        with opened(secured.node_netns, [flow], 5):
            assert re.search(r"timeout 35s", table(secured))  # the kernel forgets it by itself
            assert passes(ours, theirs)
            assert passes(ours, theirs)
        assert table(secured) == dropped
        with opened(secured.node_netns, [flow], 5):
            assert not passes(other, theirs)
            assert not passes(ours, port)
            assert not passes(theirs, ours)
            assert passes(ours, theirs)
        # Nothing remembers the flow.
        assert not passes(ours, theirs)
        assert not passes(theirs, ours)


def test_verify_loses_nothing_that_a_delay_line_holds(secured: LocalRuntime) -> None:
    server, client = secured.pods[:2]
    ztprobe("profile", "apply", "net4", *CLIENTS, "--backend", "nfqueue")
    with bound(client) as ours, bound(server) as theirs:
        flow = (*ours.getsockname(), *theirs.getsockname())
    ports = (flow[1], flow[3])
    # 150 datagrams are held at any moment while the way for other sockets opens and closes.
    with opened(secured.node_netns, [flow], 60), numbered(client, server, ports=ports) as arrived:
        (verdict,) = json.loads(ztprobe("profile", "verify", "--probes", "200", "--json"))
    assert verdict["passed"], verdict["problems"]
    assert arrived.missing() == 0, arrived.sent


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_verify_that_is_ended_leaves_no_way(secured: LocalRuntime, number: signal.Signals) -> None:
    before = rules(secured)
    ztprobe("profile", "apply", "net1", *CLIENTS)
    process = command("profile", "verify", "--probes", "20000")
    deadline = time.monotonic() + 20 * PATIENCE
    while "notrack" not in table(secured):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=20)
    if number is signal.SIGKILL:
        assert "notrack" in table(secured)
        _, said = command("profile", "status").communicate(timeout=60)
        where = f"the policies of {secured.node_netns.name}"
        assert said == f"ztprobe: left behind, now removed: the way of a killed verify through {where}\n"
    assert rules(secured) == before
    assert not list(paths.STATE_DIR.glob("leases/passage-*"))


@contextlib.contextmanager
def overload(sender: Any, receiver: Any) -> Iterator[None]:
    """An application that offers about 50 Mbit/s."""
    end = threading.Event()
    with entered(sender.netns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send() -> None:
        while not end.wait(0.002):
            for _ in range(10):
                with contextlib.suppress(OSError):
                    sock.sendto(bytes(1400), (receiver.address, 9))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        sock.close()


@pytest.mark.long
def test_a_queue_that_overflows_is_named(cluster: Cluster, tmp_path: Path) -> None:
    profile = profile_file(tmp_path, "rate_mbit: 20\nqueue_limit_packets: 5")
    cluster.profile("apply", profile, "-l", "pod=client-0")
    with overload(cluster.pods["client-0"], cluster.pods["client-1"]):
        (verdict,) = cluster.profile("verify", "--probes", "300")
    assert not verdict["passed"]
    # Large packets find the queue full and small ones slip in, late.
    assert any("mean delay" in problem for problem in verdict["problems"]), verdict["problems"]
    cause = verdict["causes"][0]
    found = re.fullmatch(
        r"a queue overflowed: (\d+) packets were dropped that nobody asked to lose \(queue_limit.*\)",
        cause,
    )
    assert found is not None, cause
    assert int(found[1]) > 100
    (verdict,) = cluster.profile("verify", "--probes", "300")  # without that
    assert verdict["passed"], verdict["problems"]


def test_other_traffic_that_shares_a_rate_is_named(cluster: Cluster, tmp_path: Path) -> None:
    cluster.profile("apply", profile_file(tmp_path, "rate_mbit: 10"), "-l", "pod=client-0")
    with overload(cluster.pods["client-0"], cluster.pods["client-1"]):
        (verdict,) = cluster.profile("verify", "--probes", "300")
    assert not verdict["passed"]
    assert any(
        re.match(r"other traffic shared the rate meanwhile \(\d{3,} packets beside 300 probes\)", cause)
        for cause in verdict["causes"]
    ), verdict["causes"]


def test_verify_of_pods_that_end_is_one_line(cluster: Cluster) -> None:
    cluster.profile("apply", "net5", "-l", "pod=client-0")
    words = [sys.executable, "-m", "ztprobe", "profile", "verify", "--probes", "2000"]
    environment = {**os.environ, "ZTPROBE_STATE_DIR": str(cluster.state)}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=paths.REPO_DIR, env=environment
    ) as process:
        deadline = time.monotonic() + 20 * PATIENCE
        while not socket_in(cluster.pods["client-0"].netns):  # it is measuring
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        for pod in cluster.pods.values():
            remove_netns(pod.netns.name)
        _, said = process.communicate(timeout=60 * PATIENCE)
    assert process.returncode == 5, said
    assert re.fullmatch(r"ztprobe: lease \w+: its pods ended meanwhile: .* is gone\n", said), said


def socket_in(netns: Path) -> bool:
    """Whether somebody in there has a UDP socket."""
    try:
        with entered(netns):
            return len(Path("/proc/thread-self/net/udp").read_text().splitlines()) > 1
    except FileNotFoundError:
        return False


# Real-time, so that neither the prober nor a delay line comes before it; a few per cent are left to others.
_BURN = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(90))
print(flush=True)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    until = time.monotonic() + 0.045
    while time.monotonic() < until:
        pass
    time.sleep(0.002)
"""


@contextlib.contextmanager
def busy_cpus(seconds: float) -> Iterator[None]:
    burners = [
        subprocess.Popen([sys.executable, "-S", "-c", _BURN, str(cpu), str(seconds)], stdout=subprocess.PIPE)
        for cpu in os.sched_getaffinity(0)
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.communicate()


def test_busy_cpus_are_named(cluster: Cluster, tmp_path: Path) -> None:
    profile = profile_file(tmp_path, "delay_ms: 5")
    cluster.profile("apply", profile, "-l", "pod=client-0", "--backend", "nfqueue")
    with busy_cpus(60 * PATIENCE):
        (verdict,) = cluster.profile("verify", "--probes", "100")
    assert not verdict["passed"]
    assert len(verdict["causes"]) == 1, verdict["causes"]
    assert re.fullmatch(
        r"this machine's CPUs were (9\d|100) % busy meanwhile, which delays packets too", verdict["causes"][0]
    )


@pytest.mark.optional
def test_a_timer_that_ticks_is_named(cluster: Cluster, tmp_path: Path) -> None:
    if time.clock_getres(time.CLOCK_MONOTONIC) < 1e-4:
        pytest.skip("this kernel has high-resolution timers (boot with highres=off)")
    cluster.profile("apply", profile_file(tmp_path, "delay_ms: 10"), "-l", "pod=client-0")
    (verdict,) = cluster.profile("verify", "--probes", "100")
    assert not verdict["passed"]
    assert any(re.match(r"this kernel's timers tick every \d+ ms", cause) for cause in verdict["causes"])
