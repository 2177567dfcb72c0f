"""`ztprobe drops` on pods that run: whose packets, by which policy, how soon, and in a flood."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import yaml
from scapy.utils import PcapNgReader

from tests.kernel.live_run import PATIENCE, Cluster, cluster
from tests.programs import program
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.pods.live_objects import publish_objects

__all__ = ("cluster",)

PORT = 50051
FLOOD_PER_S, FLOOD_S = 100_000, 10.0
LATENCY_BOUND_S = 1.0 * PATIENCE  # on a quiet machine 0.2 s; this one may be busy
DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server-alone, namespace: fl}
spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}
"""
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "fl", "labels": {}}}
DROPS = f"""table ip test {{
  counter dropped {{}}
  chain input {{
    type filter hook input priority 0;
    udp dport {PORT}-{PORT + 99} counter name dropped drop
    tcp dport {PORT} counter name dropped drop
  }}
}}
"""


@dataclass
class Following:
    """`ztprobe drops --follow --json`, and each line with when it came (CLOCK_REALTIME ns)."""

    process: subprocess.Popen[str]
    lines: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append((time.time_ns(), json.loads(line)))

    def listen(self) -> None:
        for line in self.process.stderr or ():
            self.said.append(line.strip())

    def await_packets(self, count: int) -> None:
        deadline = time.monotonic() + 10 * PATIENCE
        while self.packets() < count and time.monotonic() < deadline:
            time.sleep(0.02)

    def packets(self) -> int:
        return sum(int(line["packets"]) for _, line in self.lines)

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20 * PATIENCE) == 0, self.said


@contextlib.contextmanager
def following(cluster: Cluster, *words: str) -> Iterator[Following]:
    """Until the body's end, which ends it as Ctrl-C does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ztprobe", "drops", "--follow", "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO_DIR,
        env={**os.environ, "ZTPROBE_STATE_DIR": str(cluster.state)},
    )
    found = Following(process)
    threads = [threading.Thread(target=target) for target in (found.read, found.listen)]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 30 * PATIENCE
        while not found.said and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, found.said
        yield found
        if process.poll() is None:
            found.end()
    finally:
        process.kill()
        for thread in threads:
            thread.join()


def nft(netns: Path, *arguments: str, text: str | None = None) -> str:
    with entered(netns):
        done = subprocess.run(
            [program("nft"), *arguments], input=text, capture_output=True, text=True, check=True
        )
    return done.stdout


def counted(netns: Path) -> int:
    listed = json.loads(nft(netns, "-j", "list", "counters"))["nftables"]
    return sum(int(entry["counter"]["packets"]) for entry in listed if "counter" in entry)


def send(cluster: Cluster, sender: str, ports: list[int], *, gap_s: float = 0.0) -> None:
    with entered(cluster.pods[sender].netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for port in ports:
            udp.sendto(b"x" * 10, (cluster.pods["server"].address, port))
            time.sleep(gap_s)


def publish(cluster: Cluster, *objects: dict[str, Any]) -> None:
    (run,) = (path for path in cluster.state.iterdir() if (path / "journal.json").exists())
    publish_objects(run, [NAMESPACE, *objects])


def test_lines_name_pods_reason_and_the_policy_in_force_then(cluster: Cluster, tmp_path: Path) -> None:
    server = cluster.pods["server"].netns
    nft(server, "-f", "-", text=DROPS)
    publish(cluster)
    file = tmp_path / "drops.pcapng"
    words = ("--pcap", str(file), "--filter", "udp", "--selector", "app=server")
    with following(cluster, *words) as found:
        send(cluster, "client-0", [PORT])
        found.await_packets(1)
        publish(cluster, yaml.safe_load(DENY))
        time.sleep(1.0)  # it looks for changes four times a second
        send(cluster, "client-1", [PORT] * 40)
        found.await_packets(41)
        found.end()
    first, *others = [line for _, line in found.lines]
    assert (first["source"], first["target"], first["target_port"]) == ("client-0", "server", PORT)
    assert (first["reason"], first["pod"], first["protocol"]) == ("NETFILTER_DROP", "server", "udp")
    assert first["location"]
    assert first["verdict"] == "not applicable"
    assert first["explanation"] == ["by a packet filter, and no policy's: none selects either end"]
    assert {line["source"] for line in others} == {"client-1"}
    assert {tuple(line["policies"]) for line in others} == {("NetworkPolicy fl/server-alone",)}
    assert sum(line["packets"] for line in others) == 40
    assert len(others) < 10  # a burst is no forty lines
    assert found.said[-2].startswith("41 dropped packets in ")
    with PcapNgReader(str(file)) as packets:
        comments = [[text.decode() for text in packet.comments] for packet in packets]
    assert len(comments) == 33  # of each kind the first 32 in a second are known whole
    assert any("server-alone" in text for text in comments[-1])
    left = f"ztprobe-scratch-{found.process.pid}-"
    assert not [path for path in Path(tempfile.gettempdir()).iterdir() if path.name.startswith(left)]


def test_noise_is_told_as_such(cluster: Cluster) -> None:
    with following(cluster) as found:
        with entered(cluster.pods["client-0"].netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.99.0.2"))
            udp.sendto(b"x", ("224.0.0.251", 5353))
            udp.sendto(b"x", (cluster.pods["server"].address, 9))
        deadline = time.monotonic() + 5 * PATIENCE
        while time.monotonic() < deadline and not {"group", None} <= {
            line["noise"] for _, line in found.lines
        }:
            time.sleep(0.02)
    noise = {(line["target"], line["noise"]) for _, line in found.lines}
    assert ("server", None) in noise
    assert ("224.0.0.251", "group") in noise


def test_from_drop_to_line(cluster: Cluster) -> None:
    nft(cluster.pods["server"].netns, "-f", "-", text=DROPS)
    with following(cluster, "--reason", "NETFILTER_DROP") as found:
        send(cluster, "client-0", [PORT + i % 80 for i in range(240)], gap_s=0.02)
        found.await_packets(240)
    delays = sorted((came - line["time_unix_ns"]) / 1e9 for came, line in found.lines if not line["more"])
    p99_s = delays[int(len(delays) * 0.99)]
    print(f"from drop to line: median {delays[len(delays) // 2] * 1e3:.1f} ms, p99 {p99_s * 1e3:.1f} ms")
    assert found.packets() == 240
    assert len(delays) > 200
    assert p99_s < LATENCY_BOUND_S


def flood(cluster: Cluster, per_s: int, seconds: float) -> None:
    address = (cluster.pods["server"].address, PORT)
    with entered(cluster.pods["client-0"].netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        started, sent = time.monotonic(), 0
        while (elapsed := time.monotonic() - started) < seconds:
            for _ in range(int(elapsed * per_s) - sent):
                udp.sendto(b"x", address)
                sent += 1
            time.sleep(0.002)


@contextlib.contextmanager
def run_times_counted() -> Iterator[None]:
    """The kernel counts how long BPF programs run."""
    descriptor = ctypes.CDLL("libbpf.so.1").bpf_enable_stats(0)
    assert descriptor >= 0
    try:
        yield
    finally:
        os.close(descriptor)


def cpu_seconds(pid: int) -> float:
    """Of a process, and of its programs in the kernel."""
    in_kernel_ns = 0
    for descriptor in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            said = dict(line.split(":\t", 1) for line in descriptor.read_text().splitlines() if ":\t" in line)
            in_kernel_ns += int(said.get("run_time_ns", "0"))
    return float(sum(psutil.Process(pid).cpu_times()[:2])) + in_kernel_ns / 1e9


@pytest.mark.long
def test_a_flood_is_counted(cluster: Cluster) -> None:
    server = cluster.pods["server"].netns
    nft(server, "-f", "-", text=DROPS)
    seconds = FLOOD_S if PATIENCE == 1 else 2.0
    with following(cluster, "--reason", "NETFILTER_DROP") as found, run_times_counted():
        before = cpu_seconds(found.process.pid)
        flood(cluster, FLOOD_PER_S, seconds)
        time.sleep(1.5)
        cpu_s = cpu_seconds(found.process.pid) - before
        found.end()
    truth, seen = counted(server), found.packets()
    print(
        f"{truth} drops in {seconds:.0f} s by nft, {seen} seen ({truth - seen} fewer),"
        f" in {len(found.lines)} lines, {cpu_s / seconds:.1%} of a core; {found.said[-1]}"
    )
    assert truth > 50_000 * seconds / PATIENCE
    assert seen <= truth
    assert truth - seen <= truth * 0.01
    assert found.lines[0][1]["packets"] == 1  # the first of its kind, whole
    assert len(found.lines) < 3 * seconds + 20
    assert cpu_s < seconds / 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--reason", "NO_SUCH"), "this kernel drops for no such reason"),
        (("--filter", "tcp prot"), "syntax error"),
        (("--run", "none"), "--run none: no such run is going on"),
        (("--pod", "nobody"), "no such pod runs, there are client-0, client-1, node, server"),
        (("--selector", "app=none"), "picks none of the pods that run"),
    ],
)
def test_what_cannot_be_watched_is_one_line(cluster: Cluster, words: tuple[str, ...], said: str) -> None:
    done = cluster.ztprobe("drops", "--for", "1", *words, fails=2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
