"""What an agent with probes tells Prometheus, held against what the kernel itself has counted in the pods."""

from __future__ import annotations

import contextlib
import json
import math
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.agent_service import certificates, service
from tests.kernel.bridged import Node
from tests.kernel.test_agent import SENT_BYTES, transfer
from tests.kernel.test_agent_service import begin, client, received, wait_for
from tests.kernel.test_emulation import node
from tests.programs import program
from tests.prometheus import asked, by_label, free_port, prometheus, queries
from ztprobe.agent.service.wire import TlsFiles
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod

__all__ = ("node",)  # a fixture

CLOSED, POLICED = 5999, 5998  # nobody listens; a packet filter drops what is for it
REFUSED, DROPPED = 23, 3
RULES = f"""table ip test {{
  counter dropped {{}}
  chain input {{
    type filter hook input priority 0;
    tcp dport {POLICED} counter name dropped drop
  }}
}}
"""


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, TlsFiles]:
    return certificates(tmp_path / "tls")


def snmp(pod: Pod) -> dict[str, int]:
    """A namespace's TCP counters (RFC 4022)."""
    with entered(pod.netns):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Tcp:"))
    return dict(zip(names, map(int, values), strict=True))


def filtered(pod: Pod) -> int:
    """Packets that the pod's packet filter has dropped."""
    with entered(pod.netns):
        done = subprocess.run(
            [program("nft"), "-j", "list", "counters"], capture_output=True, text=True, check=True
        )
    return sum(one["counter"]["packets"] for one in json.loads(done.stdout)["nftables"] if "counter" in one)


def refused(source: Pod, target: Pod) -> None:
    """A connection to a port that nobody listens on."""
    with entered(source.netns):
        caller = socket.socket()
    with caller, pytest.raises(ConnectionRefusedError):
        caller.connect((target.address, CLOSED))


@contextlib.contextmanager
def unanswered(source: Pod, target: Pod, count: int) -> Iterator[None]:
    """Connections that a packet filter keeps from being answered, until the body ends."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            with entered(source.netns):
                caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex((target.address, POLICED))
        yield


def finite(port: int, query: str) -> bool:
    """Whether it gives series, and numbers in them."""
    values = [float(one["value"][1]) for one in asked(port, query)]
    return bool(values) and all(map(math.isfinite, values))


def agrees(what: str, told: Callable[[], object], truth: object) -> None:
    """Within the time that a scrape and the last events take. :raises AssertionError: with both."""
    with contextlib.suppress(AssertionError):
        wait_for(what, lambda: told() == truth)
    assert told() == truth, what


def test_what_is_counted_is_what_the_kernel_counted(
    node: Node, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    first, second = node.pods
    with entered(second.netns):
        subprocess.run([program("nft"), "-f", "-"], input=RULES, text=True, check=True)
    metrics, transfers = free_port(), 0
    with (
        service(tls["agent"], tmp_path / "agent", "--metrics", f"127.0.0.1:{metrics}") as served,
        client(served.address, tls["collector"], tmp_path) as agent,
        prometheus(tmp_path, metrics) as scraped,
    ):
        begin(agent, node)
        before = {pod.name: snmp(pod) for pod in node.pods}
        # Nobody tells of rounds here.
        wanted = {name: query for name, query in queries().items() if not re.search("_(round|run)_", query)}

        def all_answered() -> bool:
            nonlocal transfers
            transfer(first, second)
            transfers += 1
            for name in [name for name, query in wanted.items() if finite(scraped, query)]:
                del wanted[name]
            return not wanted

        wait_for(f"series for {wanted}", all_answered, 60)
        for _ in range(REFUSED):
            refused(first, second)

        def since(pod: Pod, name: str) -> int:
            return snmp(pod)[name] - before[pod.name][name]

        with unanswered(first, second, DROPPED):
            wait_for("SYNs sent again", lambda: since(first, "RetransSegs") >= DROPPED)
        # What the kernel says it has done...
        opened = since(first, "ActiveOpens")
        assert opened == transfers + REFUSED + DROPPED
        assert since(first, "AttemptFails") == since(second, "OutRsts") == REFUSED
        again = sum(since(pod, "RetransSegs") for pod in node.pods)
        dropped = filtered(second)
        assert dropped >= 2 * DROPPED

        def told(query: str) -> dict[tuple[str, ...], float]:
            return by_label(asked(scraped, f"ztprobe_agent_{query}"))

        # ... is what the agent says it has seen.
        moved = transfers * SENT_BYTES
        ways = {(way, pod.name): float(moved) for pod in node.pods for way in ("sent", "received")}
        agrees("connections", lambda: told("connections_total"), {(): opened})
        agrees("handshakes", lambda: told("handshake_seconds_count"), {(): transfers})
        agrees("sent again", lambda: told("retransmissions_total"), {(): again})
        agrees("payload", lambda: told("communication_bytes_total"), ways)
        reasons = told("drops_total")
        assert reasons["NETFILTER_DROP",] == dropped
        assert reasons["NO_SOCKET",] == REFUSED
        assert 0 < told("handshake_seconds_sum")[()] < transfers
        assert not any(told("events_missed_total").values())
        account = agent.stop()
        assert not any(account.loss.values()), account.loss
        handed_on = received(tmp_path, account)
        assert handed_on == account.events_seen

        def delivered() -> float:
            (total,) = asked(scraped, "sum(ztprobe_agent_events_delivered_total)")
            return float(total["value"][1])

        wait_for("all handed on", lambda: delivered() == handed_on)
