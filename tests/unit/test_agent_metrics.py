"""What the agent tells Prometheus, and to whom."""

from __future__ import annotations

import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kernel.agent_service import certificates
from tests.unit.test_batches import rows_of
from ztprobe.agent.service.client import AgentClient, Connection
from ztprobe.agent.service.metrics import Metrics
from ztprobe.agent.service.server import AgentServer
from ztprobe.agent.service.session import Sessions
from ztprobe.agent.spool_sink import SpoolSink
from ztprobe.errors import UsageError
from ztprobe.events.tables import RINGS
from ztprobe.rundir.batches import BATCHES_DIR


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AgentServer]:
    sessions = Sessions(tmp_path / "agent", queue_bytes=1 << 20, orphan_s=60)
    with closing(AgentServer(f"unix:{tmp_path}/socket", sessions, tls=None)) as made:
        yield made
    sessions.close()


def figures(url: str, context: ssl.SSLContext | None = None) -> dict[str, dict[str, float]]:
    """Metric -> labels (as text) -> value."""
    with urllib.request.urlopen(url, timeout=10, context=context) as answer:
        text = answer.read().decode()
    return {
        sample.name: {
            ",".join(other.labels.values()): other.value
            for other in family.samples
            if other.name == sample.name
        }
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_figures_are_those_of_the_sessions(server: AgentServer, tmp_path: Path) -> None:
    with closing(Metrics("127.0.0.1:0", None, server.status, server.delivered)) as metrics:
        url = f"http://127.0.0.1:{metrics.port}/metrics"
        before = figures(url)
        assert before["ztprobe_agent_sessions"] == {"": 0}
        assert before["ztprobe_agent_events_delivered_total"] == dict.fromkeys(RINGS, 0)
        connection = Connection(f"unix:{tmp_path}/socket", None)
        with AgentClient(connection, tmp_path / BATCHES_DIR, run="test", probes=False) as agent:
            agent.prepare()
            found = figures(url)
            assert found["ztprobe_agent_sessions"] == {"": 1}
            resident = found["ztprobe_agent_resident_bytes"][""]
            assert resident > before["ztprobe_agent_resident_bytes"][""]
            # Somebody else's events in its queue: they are handed on and counted.
            (directory,) = (tmp_path / "agent").glob("*/queue")
            sink = SpoolSink(directory / "more", 64 << 20)
            sink.write("points", rows_of("points", 20_000, 1))
            for path in (directory / "more").glob("*.arrow"):
                path.rename(directory / path.name)
            for _ in range(100):
                if not list(directory.glob("*.arrow")):
                    break
                agent._closing.wait(0.05)
            assert agent._after == 0
        after = figures(url)
        assert after["ztprobe_agent_sessions"] == {"": 0}
        assert after["ztprobe_agent_events_delivered_total"]["points"] == 20_000
        # As many series as before: nothing of a cluster's is a label.
        assert {name: set(values) for name, values in after.items()} == {
            name: set(values) for name, values in before.items()
        }


def test_others_need_a_certificate(server: AgentServer, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=re.escape("take 127.0.0.1:0, or give --cert, --key and --client-ca")
    ):
        Metrics("0.0.0.0:0", None, server.status, server.delivered)
    tls = certificates(tmp_path / "tls")
    with closing(Metrics("0.0.0.0:0", tls["agent"], server.status, server.delivered)) as metrics:
        url = f"https://127.0.0.1:{metrics.port}/metrics"
        context = ssl.create_default_context(cafile=str(tls["collector"].authority))
        context.check_hostname = False
        with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
            figures(url, context)
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            figures(url.replace("https", "http"))
        context.load_cert_chain(tls["collector"].certificate, tls["collector"].key)
        assert figures(url, context)["ztprobe_agent_sessions"] == {"": 0}
