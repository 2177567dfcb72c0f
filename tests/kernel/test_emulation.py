"""Profiles on a small node of our own: what packets really get, counted independently."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.bridged import Node, bridged_node, delays_ms
from ztprobe.agent.emulator import Emulator
from ztprobe.emulation.delay_line import lateness
from ztprobe.emulation.netem import netem_supported
from ztprobe.errors import EnforcementError
from ztprobe.kernelnet.netlink import netlink
from ztprobe.kernelnet.netns import entered
from ztprobe.kernelnet.root_qdisc import HANDLE, root_qdisc
from ztprobe.pods.model import Pod
from ztprobe.profile.model import Profile, load_profile

PORT = 5001
PATIENCE = float(os.environ.get("ZTPROBE_TEST_PATIENCE", "1"))  # more where a CPU is emulated in software
# Such a CPU stands still now and then, and a bucket of a millisecond runs over meanwhile: 40 ms for that.
ROOMY = {} if PATIENCE == 1 else {"burst_bytes": 50_000}
_TCP_CONGESTION = 13
_SO_RCVBUFFORCE = 33


@pytest.fixture
def node() -> Iterator[Node]:
    """Built for one test."""
    with bridged_node() as made:
        yield made


def bare_ms(node: Node) -> float:
    """What the path takes by itself: 0.03 ms, and ten times that where a CPU is emulated in software."""
    return statistics.median(delays_ms(*node.pods, count=61, gap_s=0.002))


def bulk_s(a: Pod, b: Pod, size_bytes: int) -> float:
    """Seconds for one cubic connection to carry ``size_bytes`` from a to b, set-up not included."""
    with entered(b.netns):
        listener = socket.create_server((b.address, PORT))
    # A fixed receive buffer: how fast Linux grows its own varies from 0.3 s to 2 s for 4.8 MB.
    listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
    with entered(a.netns):
        sender = socket.socket()
    with listener, sender:
        sender.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, b"cubic")
        sender.settimeout(20)
        sender.connect((b.address, PORT))
        receiver, _ = listener.accept()
        receiver.settimeout(20)
        payload = bytes(size_bytes)
        with receiver:
            started = time.monotonic()
            thread = threading.Thread(target=sender.sendall, args=(payload,))
            thread.start()
            received = 0
            while received < size_bytes:
                chunk = receiver.recv(1 << 20)
                assert chunk, "the connection ended early"
                received += len(chunk)
            took_s = time.monotonic() - started
            thread.join()
    return took_s


def datagrams_received(pod: Pod) -> int:
    """UDP datagrams that the pod's namespace has received, by the kernel's own counter."""
    with entered(pod.netns):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Udp:"))
    return int(values[names.index("InDatagrams")])


def emulate(node: Node, tmp_path: Path, backend: str | None = None, **profile: object) -> Emulator:
    return Emulator(Profile(name="test", **profile), node.pods, node.netns, tmp_path, 1, backend=backend)


@pytest.fixture(params=["nfqueue", pytest.param("netem", marks=pytest.mark.optional)])
def delay_backend(request: pytest.FixtureRequest) -> str:
    """Both ways to delay; netem where the kernel has it."""
    if request.param == "netem" and not netem_supported():
        pytest.skip("no netem (CONFIG_NET_SCH_NETEM)")
    return str(request.param)


def test_normal_jitter_has_its_mean_spread_and_shape(node: Node, tmp_path: Path, delay_backend: str) -> None:
    longer = min(PATIENCE, 5)
    values = {"delay_ms": 80 * longer, "jitter_ms": 20 * longer}
    with emulate(node, tmp_path, delay_backend, distribution="normal", **values) as emulator:
        emulator.apply()
        delays = sorted(each / longer for each in delays_ms(*node.pods, count=1201, gap_s=0.0015))
        assert len(delays) == 1201
        assert statistics.fmean(delays) == pytest.approx(80, abs=2.5)  # 4 standard errors
        assert statistics.stdev(delays) == pytest.approx(20, rel=0.09)
        normal = statistics.NormalDist(80, 20)
        distance = max(abs((i + 0.5) / len(delays) - normal.cdf(value)) for i, value in enumerate(delays))
        assert distance < 1.95 / math.sqrt(len(delays))  # Kolmogorov-Smirnov, 99.9 %


def test_jitter_reorders_as_independent_draws_do(node: Node, tmp_path: Path, delay_backend: str) -> None:
    values = {"delay_ms": 20 * PATIENCE, "jitter_ms": 5 * PATIENCE}
    with emulate(node, tmp_path, delay_backend, distribution="uniform", **values) as emulator:
        emulator.apply()
        delays = delays_ms(*node.pods, count=401, gap_s=0.002)
    assert statistics.stdev(delays) == pytest.approx(5 * PATIENCE / math.sqrt(3), rel=0.12)
    # In the order of arrival, sending times that go backwards: delays that grow by more than the gap.
    assert sum(later - earlier > 2 * PATIENCE for earlier, later in itertools.pairwise(delays)) > 50


def test_constant_delay_is_exact_both_ways(node: Node, tmp_path: Path, delay_backend: str) -> None:
    path_ms = bare_ms(node)
    with emulate(node, tmp_path, delay_backend, delay_ms=20) as emulator:
        emulator.apply()
        for a, b in (node.pods, node.pods[::-1]):
            median_ms = statistics.median(delays_ms(a, b, count=101, gap_s=0.003))
            assert median_ms == pytest.approx(20 + path_ms, abs=0.5 * max(1, PATIENCE / 3))


def test_loss_is_counted_alike_by_the_receiver(node: Node, tmp_path: Path) -> None:
    a, b = node.pods
    with emulate(node, tmp_path, "nfqueue", loss_pct=5) as emulator:
        emulator.apply()
        before = datagrams_received(b)
        sent = 3001
        arrived = len(delays_ms(a, b, count=sent, gap_s=0.0002))
        counted = datagrams_received(b) - before
        time.sleep(1.1)  # the counters are written once a second
        line = emulator.stats()["delay_line"]
    assert arrived == counted == sent - line["dropped"][a.name]
    assert 95 <= sent - arrived <= 210  # 150 +- 5 standard deviations
    assert line["queue_dropped"] == line["user_dropped"] == line["verdict_errors"] == 0


def test_token_bucket_holds_its_rate_over_tcp(node: Node, tmp_path: Path) -> None:
    profile = dataclasses.replace(load_profile("net5"), **ROOMY)
    size = 1_200_000
    # 1448 bytes of payload in a frame of 1514, and the bucket starts full
    expected_s = (size * 1514 / 1448 - profile.burst_bytes) * 8 / 10e6
    with Emulator(profile, node.pods, node.netns, tmp_path, 1) as emulator:
        emulator.apply()
        assert emulator.backend == "tbf"
        assert bulk_s(*node.pods, size) == pytest.approx(expected_s, rel=0.02)


def test_bulk_tcp_flows_through_a_delay(node: Node, tmp_path: Path, delay_backend: str) -> None:
    with emulate(node, tmp_path, delay_backend, delay_ms=20) as emulator:
        emulator.apply()
        took_s = bulk_s(*node.pods, 4_800_000)
        assert 0.04 < took_s < 1.5


def test_rate_and_delay_together(node: Node, tmp_path: Path) -> None:
    profile = load_profile("net2a")
    with Emulator(profile, node.pods, node.netns, tmp_path, 1) as emulator:
        emulator.apply()
        a, b = node.pods
        measured = emulator.measure(a, [b])
    assert measured.problems(profile) == []
    assert measured.as_dict()["rate_mbit"] == pytest.approx(20, rel=0.03)
    assert measured.as_dict()["delay_ms"] == pytest.approx(50, abs=0.6 * max(1, PATIENCE / 3))


@pytest.mark.parametrize("name", ["net0", "net1", "net3", "net4a"])
def test_shipped_profiles_measure_as_they_ask(node: Node, tmp_path: Path, name: str) -> None:
    profile = load_profile(name)
    a, b = node.pods
    with Emulator(profile, node.pods, node.netns, tmp_path, 1) as emulator:
        emulator.apply()
        assert emulator.measure(a, [b]).problems(profile) == []


def test_measuring_notices_a_profile_that_is_not_in_force(node: Node, tmp_path: Path) -> None:
    a, b = node.pods
    with emulate(node, tmp_path, "none", delay_ms=20, jitter_ms=5, distribution="normal") as nothing:
        nothing.apply()
        problems = nothing.measure(a, [b]).problems(nothing.profile)
    assert any("not on the path" in problem for problem in problems)
    assert any("standard deviation" in problem for problem in problems)


def test_traffic_flows_on_when_the_delay_line_dies(node: Node, tmp_path: Path) -> None:
    with emulate(node, tmp_path, "nfqueue", delay_ms=50) as emulator:
        emulator.apply()
        assert statistics.median(delays_ms(*node.pods, count=11, gap_s=0.005)) > 49
        emulator.check()
        pid = emulator.delay_line_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 2
        while emulator.stats()["alive"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert emulator.stats()["alive"] is False
        with pytest.raises(EnforcementError, match="in force no longer: the delay line has died"):
            emulator.check()
        delays = delays_ms(*node.pods, count=11, gap_s=0.005)
    assert len(delays) == 11
    assert statistics.median(delays) < 5


def test_a_delay_line_that_stands_still_says_so_and_ends_the_run(node: Node, tmp_path: Path) -> None:
    with emulate(node, tmp_path, "nfqueue", delay_ms=20) as emulator:
        emulator.apply()
        delays_ms(*node.pods, count=201, gap_s=0.002)
        emulator.check()
        before = emulator.stats()["delay_line"]["late"]
        pid = emulator.delay_line_pid
        assert pid is not None
        stopping = threading.Timer(0.3, os.kill, (pid, signal.SIGSTOP))
        going_on = threading.Timer(3.3, os.kill, (pid, signal.SIGCONT))
        stopping.start()
        going_on.start()
        delays = delays_ms(*node.pods, count=801, gap_s=0.002)
        going_on.join()
        line = emulator.stats()["delay_line"]
        with pytest.raises(EnforcementError, match=r"the delay line was late by [23]\d\d\d ms at worst"):
            emulator.check()
    assert len(delays) < 801 or max(delays) > 2000  # who measures does not wait for ever
    worst = max(line["late"]["spans"], key=lambda span: span["worst_ns"])
    assert worst["worst_ns"] == pytest.approx(3e9, rel=0.1)
    assert worst["packets"] >= 100
    assert before["worst_ns"] < 1e9 * max(1, PATIENCE / 3)


def test_a_delay_line_that_never_moves_again_is_noticed(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lateness, "SILENT_NS", 2_000_000_000)
    with emulate(node, tmp_path, "nfqueue", delay_ms=20) as emulator:
        emulator.apply()
        emulator.check()
        assert emulator.delay_line_pid is not None
        os.kill(emulator.delay_line_pid, signal.SIGSTOP)
        deadline = time.monotonic() + 8
        said = None
        while said is None and time.monotonic() < deadline:
            time.sleep(0.1)
            try:
                emulator.check()
            except EnforcementError as error:
                said = str(error)
    assert said is not None
    assert "the delay line has stood still for" in said


def test_delay_line_ends_with_its_parent(node: Node, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from types import SimpleNamespace as S;"
        "from ztprobe.agent.emulator import Emulator; from ztprobe.profile.model import Profile;"
        "node, a, address, state = sys.argv[1:];"
        "pod = S(name='a', address=address, netns=Path(a), interface='eth0');"
        "e = Emulator(Profile(name='x', delay_ms=5), [pod], Path(node), Path(state), 1, backend='nfqueue');"
        "e.apply(); print(e.delay_line_pid, flush=True); time.sleep(30)"
    )
    a = node.pods[0]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(node.netns), str(a.netns), a.address, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 3
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()


def test_clear_leaves_nothing_and_can_be_repeated(node: Node, tmp_path: Path) -> None:
    emulator = emulate(node, tmp_path, "nfqueue+tbf", delay_ms=5, rate_mbit=50)
    emulator.apply()
    pid = emulator.delay_line_pid
    emulator.clear()
    emulator.clear()
    assert not Path(f"/proc/{pid}").exists()
    with entered(node.netns):
        rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    assert "NFQUEUE" not in rules
    assert "ZTPROBE" not in rules
    for pod in node.pods:
        with netlink(pod.netns) as ipr:
            (index,) = ipr.link_lookup(ifname="eth0")
            found = root_qdisc(ipr, index)
        assert found is None or found.handle == 0


def test_someone_elses_qdisc_is_refused_and_left_alone(node: Node, tmp_path: Path) -> None:
    pod = node.pods[1]
    with netlink(pod.netns) as ipr:
        (index,) = ipr.link_lookup(ifname="eth0")
        ipr.tc("add", "tbf", index, 0x70000, rate=1_000_000, burst=10_000, latency="50ms")
        refused = pytest.raises(EnforcementError, match=r"pod-b: .* already has the qdisc tbf 7:")
        with emulate(node, tmp_path, rate_mbit=10) as emulator, refused:
            emulator.apply()
        found = root_qdisc(ipr, index)
    assert found is not None
    assert found.handle == 0x70000 != HANDLE
