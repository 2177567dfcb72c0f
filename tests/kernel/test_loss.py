"""Overload, channel by channel: what is reported as lost is what was lost, to the event.

The truth never comes from the number under test: it is the kernel's own protocol counters
(`/proc/net/snmp`), a packet filter's counter, the number of things done to the pods, or the
programs' count of what they tried to hand over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.loss import CLOSED_PORT, Pods, drops, knock, logged, only, probes, snmp
from tests.kernel.pods import TestPod
from tests.programs import program
from ztprobe.events.layout import dtype_of
from ztprobe.kernelnet.netns import entered, inode
from ztprobe.probes.btf import Btf
from ztprobe.probes.collector import Collector, coverage
from ztprobe.probes.kernel import KernelProbes


def test_ring_buffer_full(pods: Pods) -> None:
    """Nobody reads a ring of one page: what the kernel dropped and we did not see was counted, exactly."""
    datagrams = 1511
    with probes(pods, ring_bytes=4096) as (kernel, collector):
        before = snmp(pods[1], "Udp", "NoPorts")
        knock(pods, datagrams)
        time.sleep(0.05)
        true = snmp(pods[1], "Udp", "NoPorts") - before
        collector.stop()
        seen = drops(collector.tables(), pods[1], "NO_SOCKET")
        loss = collector.loss()
        assert true == datagrams
        assert 0 < seen < datagrams
        assert loss["ring_buffer_full"] == true - seen
        counters = kernel.counters()
        assert counters["tried"] == collector.events_seen + loss["ring_buffer_full"]
        assert counters["emitted"] == collector.events_seen
        assert logged(collector, "ring_buffer_full") == loss["ring_buffer_full"]
        assert coverage(collector.events_seen, loss) == pytest.approx(seen / true)


def test_ring_buffer_full_from_two_cpus_at_once(pods: Pods) -> None:
    """Two senders race for the ring, the reader drains all the time; still nothing is miscounted."""
    datagrams = 20_000
    with probes(pods, ring_bytes=4096) as (_, collector):
        before = snmp(pods[1], "Udp", "NoPorts")
        collector.start()
        senders = [threading.Thread(target=knock, args=(pods, datagrams)) for _ in range(2)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        time.sleep(0.05)
        true = snmp(pods[1], "Udp", "NoPorts") - before
        collector.stop()
        loss = collector.loss()
        seen = drops(collector.tables(), pods[1], "NO_SOCKET")
        assert true == 2 * datagrams
        assert loss["ring_buffer_full"] + loss["recursion_missed"] == true - seen
        assert collector.events_unread == 0


def test_reader_behind(pods: Pods) -> None:
    """One count for every drain that found a ring more than 90 % full: not at 90 %, and not for less."""
    stride = 8 + (dtype_of("drop").itemsize + 7) // 8 * 8
    limit = int(0.9 * 4096 / stride)  # the last number of events that is not above it
    with probes(pods, ring_bytes=4096) as (_, collector):
        for events, behind in ((limit, 0), (limit + 1, 1), (1, 1), (limit + 1, 2)):
            knock(pods, events)
            time.sleep(0.02)
            assert collector.drain() == events
            assert collector.loss()["reader_behind"] == behind
        collector.stop()
        assert collector.loss() == only("reader_behind", 2)
        assert [entry["ring"] for entry in collector.loss_log] == ["drops", "drops"]
        # it is a warning, not a loss
        assert coverage(collector.events_seen, collector.loss()) == 1.0


def test_parse_failure(pods: Pods) -> None:
    """IP options, fragments and IPv6: each packet that cannot be followed is one count at each end."""
    a, b = pods
    with probes(pods, interfaces=True) as (_, collector):
        knock(pods, 1)  # resolves the neighbour
        with entered(a.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x00")
            for _ in range(7):
                with contextlib.suppress(ConnectionRefusedError):
                    sender.sendto(b"options", (b.address, CLOSED_PORT))
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"")
            with contextlib.suppress(ConnectionRefusedError):
                sender.sendto(bytes(4000), (b.address, CLOSED_PORT))  # in three fragments
        time.sleep(0.05)
        collector.stop()
        # A first fragment looks like a whole packet but for its flag, and counts as one that it cannot read.
        assert collector.loss() == only("parse_failure", 2 * 7 + 2 * 2)
        assert logged(collector, "parse_failure") == 18


def test_ipv6_is_counted_as_unread(pods: Pods) -> None:
    """On loopback, where IPv6 needs no set-up: every packet of it is a parse failure."""
    a = pods[0]
    with entered(a.netns):
        if not Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").exists():
            pytest.skip("kernel without IPv6")
        Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("0")
    with probes(pods, interfaces=True) as (_, collector):
        datagrams = 29
        with entered(a.netns), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("::1", 7777))
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
                for _ in range(datagrams):
                    sender.sendto(b"six", ("::1", 7777))
        time.sleep(0.02)
        collector.stop()
        assert collector.loss()["parse_failure"] == datagrams


def test_unknown_pod(pods: Pods) -> None:
    """A traced namespace that nobody named: all of its events are unknown, and only those."""
    a, b = pods
    datagrams = 83
    with probes(pods) as (kernel, collector):
        collector.stop()  # another reader takes its place
    with probes(pods) as (kernel, _):
        collector = Collector(kernel, {inode(a.netns): a.name})
        knock((a, b), datagrams)  # dropped in b
        knock((b, a), 31)  # dropped in a
        time.sleep(0.05)
        collector.stop()
        assert collector.loss() == only("unknown_pod", datagrams)
        assert drops(collector.tables(), a, "NO_SOCKET") == 31
        assert coverage(collector.events_seen, collector.loss()) == pytest.approx(31 / (31 + datagrams))


@contextlib.contextmanager
def _receive_on(pod: TestPod, cpu: int) -> Iterator[None]:
    """What arrives at the pod's eth0 is processed on one CPU, in an interrupt (receive packet steering)."""
    path = "class/net/eth0/queues/rx-0/rps_cpus"
    with entered(pod.netns):
        # sysfs shows the namespace it was mounted in, so it takes a mount of its own
        done = subprocess.run(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                f"mount -t sysfs sysfs /sys && echo {1 << cpu:x} > /sys/{path}",
            ],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        pytest.skip(f"receive packet steering cannot be set: {done.stderr.strip()}")
    yield


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="takes an interrupt from another CPU")
def test_recursion_missed(pods: Pods) -> None:
    """A program that is interrupted by its own tracepoint is not run for it: the kernel counts, and so do we.

    On one CPU, a thread has its datagrams refused by a filter (a drop in its own system call) while packets
    from another CPU arrive for a closed port (drops in an interrupt). The filter and UDP count theirs.
    """
    a, b = pods
    with entered(a.netns):
        rules = "add table ip t; add chain ip t out { type filter hook output priority 0; }; "
        subprocess.run(["nft", rules + "add rule ip t out udp dport 7777 counter drop"], check=True)
    over = threading.Event()

    def flood() -> None:
        os.sched_setaffinity(0, {1})
        while not over.is_set():
            knock(pods, 500)

    with _receive_on(b, 0), probes(pods, ring_bytes=32 << 20) as (kernel, collector):
        before = snmp(b, "Udp", "NoPorts")
        flooder = threading.Thread(target=flood)
        flooder.start()
        refused = _refused_by_filter(pods, seconds=1.5)
        over.set()
        flooder.join()
        time.sleep(0.1)
        true = snmp(b, "Udp", "NoPorts") - before + refused
        collector.stop()
        loss = collector.loss()
        tables = collector.tables()
        seen = drops(tables, b, "NO_SOCKET") + drops(tables, a, "NETFILTER_DROP")
        listed = _missed_says_bpftool(kernel)
    assert loss["recursion_missed"] > 0
    assert set(listed) == {"raw_kfree_skb"} and sum(listed.values()) == loss["recursion_missed"]
    assert logged(collector, "recursion_missed") == loss["recursion_missed"]
    # A tracepoint is the whole machine's, so a few may be other namespaces'. Otherwise the count is exact
    # wherever the kernel offers every event to the programs (bpf_trace_run); a busy reader's ring may fill.
    uncounted = true - seen - loss["recursion_missed"] - loss["ring_buffer_full"]
    assert uncounted >= -50
    assert uncounted <= 0 or _leaves_out_process_1()


def _leaves_out_process_1() -> bool:
    """Whether this kernel runs no tracing program while process 1 is the current one, and counts nothing.

    No released kernel does; one that is built so has a member of its own for it. An interrupt that borrows
    process 1 goes unseen there.
    """
    with Btf() as btf, contextlib.suppress(KeyError):
        return btf.offset("bpf_prog_aux.init_owned") > 0
    return False


def _missed_says_bpftool(kernel: KernelProbes) -> dict[str, int]:
    """Program -> recursion misses, as another reader of the kernel's numbers has them."""
    found = {}
    for cost in kernel.read_costs():
        fields = Path(f"/proc/self/fdinfo/{cost.fd}").read_text().splitlines()
        number = next(line.split()[1] for line in fields if line.startswith("prog_id"))
        command = [program("bpftool"), "-j", "prog", "show", "id", number]
        shown = subprocess.run(command, check=True, capture_output=True, text=True)
        found[cost.program] = json.loads(shown.stdout).get("recursion_misses", 0)
    return {program: missed for program, missed in found.items() if missed}


def _refused_by_filter(pods: Pods, seconds: float) -> int:
    """Send what the filter drops, from CPU 0, in a process of its own. :returns: how many were dropped."""
    script = f"""
import os, socket, time
os.sched_setaffinity(0, {{0}})
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end, refused = time.monotonic() + {seconds}, 0
while time.monotonic() < end:
    for _ in range(100):
        try:
            sender.sendto(b"x", ("{pods[1].address}", 7777))
        except PermissionError:
            refused += 1
print(refused)
"""
    with entered(pods[0].netns):
        done = subprocess.run(["python3", "-c", script], check=True, capture_output=True, text=True)
    return int(done.stdout)
