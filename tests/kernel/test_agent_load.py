"""The agent's service under more than a node gives it: many connections, and a collector that stays away."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.traffic import Flood, flood
from tests.kernel.agent_service import Service, Wire, certificates, service
from tests.kernel.agent_use import processes_below, resident_bytes
from tests.kernel.bridged import Node
from tests.kernel.test_agent_service import begin, client, received, status
from tests.kernel.test_emulation import node
from ztprobe.agent.interface import Account
from ztprobe.agent.service.client import AgentClient, Connection
from ztprobe.agent.service.wire import TlsFiles
from ztprobe.events.kinds import EventKind
from ztprobe.events.rings import RINGS
from ztprobe.rundir.batches import BATCHES_DIR, read_parts

__all__ = ("node",)  # a fixture

# Asked for; what two cores reach is printed, and is less while others use them.
RATE = 12_000
_SYN, _ACK = 2, 16
# What fifty pods' rounds make in an hour (test_fifty_pods.py: up to 2,200 events a second, most of them waits
# for a CPU), here in a minute or two.
HOUR_EVENTS = 8_000_000
# Less than these take on disk, so that both is there: what waits, and what finds no room.
QUEUE_MIB = 32
# Blocks that are on their way through it when the sample is taken.
GROWTH_BYTES = 8 << 20


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, TlsFiles]:
    return certificates(tmp_path / "tls")


def counted(directory: Path) -> Counter[str]:
    """Events that came, by ring; those that each connection has once, by name."""
    found: Counter[str] = Counter()
    for part in read_parts(directory / BATCHES_DIR):
        for ring, rows in part.rows.items():
            found[ring] += rows.size
        packets = part.rows["packets"]
        packets = packets[packets["kind"] == int(EventKind.SETUP)]
        found["syns"] += int(((packets["tcp_flags"] & (_SYN | _ACK)) == _SYN).sum())
    return found


def lost(account: Account) -> Counter[str]:
    """Events that are said to be lost, by ring."""
    found: Counter[str] = Counter()
    for entry in account.loss_log:
        if entry["channel"] in ("ring_buffer_full", "queue_full"):
            found[entry["ring"]] += entry["count"]
    return found


def words(sent: Flood) -> str:
    return (
        f"{sent.opened:,} connections, {sent.rate:,.0f} a second (load {os.getloadavg()[0]:.0f}), "
        f"{sent.retransmitted} segments sent again"
    )


def all_there_or_said(sent: Flood, found: Counter[str], missing: Counter[str], account: Account) -> None:
    """Against TCP's own count: each end of each connection has one event of its own."""
    assert found["connections"] + missing["connections"] == sent.opened + sent.accepted
    assert sum(found[ring] for ring in RINGS) + account.loss["queue_full"] == account.events_seen
    assert account.loss["ring_buffer_full"] + account.loss["queue_full"] == sum(missing.values())
    assert not any(account.loss[channel] for channel in ("map_full", "parse_failure", "unknown_pod"))
    assert account.events_unread == 0
    if not missing["packets"]:
        # At either end one for each SYN; what is sent again may be one.
        assert 0 <= found["syns"] - sent.opened - sent.accepted <= 2 * sent.retransmitted


def test_thousands_of_connections_a_second_lose_no_event(
    node: Node, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    with (
        service(tls["agent"], tmp_path / "agent") as served,
        client(served.address, tls["collector"], tmp_path) as agent,
    ):
        begin(agent, node)
        sent = flood(*node.pods, 10, RATE)
        account = agent.stop()
    found, missing = counted(tmp_path), lost(account)
    print(words(sent), account.events_seen, "events", dict(found), dict(missing), account.loss)
    assert sent.opened == sent.accepted > 10_000
    all_there_or_said(sent, found, missing, account)


@contextlib.contextmanager
def standing_still(served: Service, for_s: float) -> Iterator[None]:
    """The agent's probes go on, and nobody reads what they see, some time into the body."""
    _, *below = processes_below(served.process.pid)
    stopper = os.fork()
    if stopper == 0:
        time.sleep(1)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in below:
                os.kill(pid, number)
            time.sleep(for_s)
        os._exit(0)
    try:
        yield
    finally:
        os.waitpid(stopper, 0)


def test_what_nobody_read_in_time_is_said_to_the_event(
    node: Node, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    with (
        service(tls["agent"], tmp_path / "agent") as served,
        client(served.address, tls["collector"], tmp_path) as agent,
    ):
        begin(agent, node)
        with standing_still(served, 8):
            sent = flood(*node.pods, 12, RATE)
        account = agent.stop()
    found, missing = counted(tmp_path), lost(account)
    print(words(sent), account.events_seen, "events", dict(found), dict(missing), account.loss)
    assert missing["connections"] > 10_000
    all_there_or_said(sent, found, missing, account)


def test_a_collector_that_stays_away_costs_disk_and_no_memory(
    node: Node, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    options = ("--queue", str(QUEUE_MIB), "--orphans-after", "7200")
    with (
        service(tls["agent"], tmp_path / "agent", *options) as served,
        Wire(served.port) as line,
        AgentClient(
            Connection(line.address, tls["collector"], patience_s=900), tmp_path / BATCHES_DIR, run="test"
        ) as agent,
    ):
        begin(agent, node)
        flood(*node.pods, 2, RATE)
        line.cut()

        def kept() -> tuple[int, int, int]:
            """Events that wait or had to be left, bytes of the queue, bytes of the agent."""
            (session,) = status(served.address, tls["collector"])["sessions"]  # type: ignore[misc]
            queue = session["queue"]
            held = resident_bytes(*processes_below(served.process.pid))
            return queue["rows"] + sum(queue["lost"].values()), queue["bytes"], held

        flood(*node.pods, 3, RATE)  # it has seen what there is to see
        samples = [kept()]
        until_s = time.monotonic() + 600
        while samples[-1][0] < HOUR_EVENTS and time.monotonic() < until_s:
            flood(*node.pods, 5, RATE)
            samples.append(kept())
        line.mend()
        account = agent.stop()
    (first, _, before_bytes), (last, queue_bytes, after_bytes) = samples[0], samples[-1]
    print(
        f"{last:,} events (load {os.getloadavg()[0]:.0f}), {queue_bytes / 2**20:.1f} MiB on disk, the agent "
        f"{before_bytes / 2**20:.1f} MiB after {first:,} and {after_bytes / 2**20:.1f} MiB at the end, "
        f"at most {max(held for _, _, held in samples) / 2**20:.1f}; {account.loss}"
    )
    assert last >= HOUR_EVENTS
    assert queue_bytes <= QUEUE_MIB << 20
    assert max(held for _, _, held in samples) - before_bytes < GROWTH_BYTES
    assert account.loss["queue_full"] > 0
    assert received(tmp_path, account) + account.loss["queue_full"] == account.events_seen
