"""What the agent tells Prometheus, and to whom."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kernel.agent_service import certificates
from tests.unit.test_batches import rows_of
from ztprobe.agent.service import http_server, wire
from ztprobe.agent.service.client import AgentClient, Connection, SessionCaller
from ztprobe.agent.service.metrics import Metrics
from ztprobe.agent.service.server import AgentServer
from ztprobe.agent.service.session import Sessions
from ztprobe.agent.spool_sink import SpoolSink
from ztprobe.errors import UsageError, ZtprobeError
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


def asked(server: AgentServer) -> tuple[Any, ...]:
    """What the figures are made from."""
    return server.status, server.delivered, server.tally


def test_the_figures_are_those_of_the_sessions(server: AgentServer, tmp_path: Path) -> None:
    with closing(Metrics("127.0.0.1:0", None, *asked(server))) as metrics:
        url = f"http://127.0.0.1:{metrics.port}/metrics"
        before = figures(url)
        assert before["ztprobe_agent_sessions"] == {"": 0}
        assert before["ztprobe_agent_events_delivered_total"] == dict.fromkeys(RINGS, 0)
        connection = Connection(f"unix:{tmp_path}/socket", None)
        with AgentClient(connection, tmp_path / BATCHES_DIR, run="test", probes=False) as agent:
            agent.prepare()
            assert agent.tally() == {}  # without probes
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
                if figures(url)["ztprobe_agent_events_delivered_total"]["points"]:
                    break
                agent._closing.wait(0.05)
            assert agent._after == 0
            assert not list(directory.glob("*.arrow"))
        after = figures(url)
        assert after["ztprobe_agent_sessions"] == {"": 0}
        assert after["ztprobe_agent_events_delivered_total"]["points"] == 20_000
        # As many series as before: nothing of a cluster's is a label.
        assert {name: set(values) for name, values in after.items()} == {
            name: set(values) for name, values in before.items()
        }


def test_what_arrived_before_its_stream_broke_is_counted_by_the_next(
    server: AgentServer, tmp_path: Path
) -> None:
    connection = Connection(f"unix:{tmp_path}/socket", None)
    caller = SessionCaller(connection, {"run": "test", "probes": False})
    caller._ask("prepare")
    (directory,) = (tmp_path / "agent").glob("*/queue")
    sink = SpoolSink(directory.parent / "written", 64 << 20)
    sink.write("points", rows_of("points", 500, 1))
    sink._flush()
    for path in (directory.parent / "written").glob("*.arrow"):
        path.rename(directory / path.name)
    stream = connection.events(iter([wire.encoded({"session": caller._session, "after": -1})]))
    assert wire.unframed(next(stream))[0] == 0
    stream.cancel()  # before what has come is acknowledged
    assert server.delivered == {}
    again = connection.events(iter([wire.encoded({"session": caller._session, "after": 0})]))
    for _ in range(100):
        if server.delivered:
            break
        time.sleep(0.05)
    assert server.delivered == {"points": 500}
    assert not list(directory.glob("*.arrow"))
    again.cancel()
    caller.leave()
    connection.close()


def test_others_need_a_certificate(server: AgentServer, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=re.escape("take 127.0.0.1:0, or give --cert, --key and --client-ca")
    ):
        Metrics("0.0.0.0:0", None, *asked(server))
    tls = certificates(tmp_path / "tls")
    with closing(Metrics("0.0.0.0:0", tls["agent"], *asked(server))) as metrics:
        url = f"https://127.0.0.1:{metrics.port}/metrics"
        context = ssl.create_default_context(cafile=str(tls["collector"].authority))
        context.check_hostname = False
        with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
            figures(url, context)
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            figures(url.replace("https", "http"))
        context.load_cert_chain(tls["collector"].certificate, tls["collector"].key)
        assert figures(url, context)["ztprobe_agent_sessions"] == {"": 0}


@pytest.mark.parametrize("secured", [False, True], ids=["clear", "tls"])
def test_who_connects_and_says_nothing_stops_nobody(
    server: AgentServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secured: bool
) -> None:
    """On the loopback that may be any user of the machine, and no certificate is needed to connect."""
    monkeypatch.setattr(http_server, "_WITHIN_S", 1.0)
    tls = certificates(tmp_path / "tls")
    host, context, word = "127.0.0.1", None, "http"
    if secured:
        host, word = "0.0.0.0", "https"
        context = ssl.create_default_context(cafile=str(tls["collector"].authority))
        context.check_hostname = False
        context.load_cert_chain(tls["collector"].certificate, tls["collector"].key)
    metrics = Metrics(
        f"{host}:0", tls["agent"] if secured else None, server.status, server.delivered, server.tally
    )
    url = f"{word}://127.0.0.1:{metrics.port}/metrics"
    with closing(metrics), contextlib.ExitStack() as silent:
        for _ in range(5):
            silent.enter_context(socket.create_connection(("127.0.0.1", metrics.port)))
        assert "ztprobe_agent_sessions" in figures(url, context)  # although they are still there
        threads = threading.active_count()
        for _ in range(60):
            silent.enter_context(socket.create_connection(("127.0.0.1", metrics.port)))
        assert threading.active_count() < threads + 40  # two each of those that are answered, and no more
        end = time.monotonic() + 20
        while time.monotonic() < end:  # who says nothing is left after a time
            with contextlib.suppress(OSError):
                figures(url, context)
                break
            time.sleep(0.1)
        else:
            pytest.fail("nobody is answered any more")


def test_a_run_that_is_told_replaces_the_one_before_and_cannot_make_it_grow(
    server: AgentServer, tmp_path: Path
) -> None:
    def run(clients: int, **more: Any) -> dict[str, Any]:
        times = {f"client-{number}": float(number) for number in range(clients)}
        means = {"communication_mean_s": times, "communication_longest_s": times}
        parts = {"compute": 1.5, "proxy": 0.5}
        return {"ended_unix_s": 9.0, "rounds": 3, "component_mean_s": parts, **means, **more}

    with (
        closing(Metrics("127.0.0.1:0", None, *asked(server))) as metrics,
        closing(Connection(f"unix:{tmp_path}/socket", None)) as collector,
    ):
        url = f"http://127.0.0.1:{metrics.port}/metrics"
        assert not any(name.startswith("ztprobe_run_") for name in figures(url))
        collector.tell_run(run(200))
        found = figures(url)["ztprobe_run_communication_seconds"]
        assert len(found) == 2 * 65
        assert found["client-63,mean"] == 63
        rest = range(64, 200)
        assert (found["other,mean"], found["other,longest"]) == (sum(rest) / len(rest), 199)
        collector.tell_run(run(2, ended_unix_s=10.0))
        found = figures(url)
        assert set(found["ztprobe_run_communication_seconds"]) == {
            f"client-{number},{of}" for number in range(2) for of in ("mean", "longest")
        }
        assert found["ztprobe_run_component_seconds"] == {"compute": 1.5, "proxy": 0.5}
        assert found["ztprobe_run_end_time_seconds"] == {"": 10}
        for wrong in (
            run(1, rounds="3"),
            run(1, rounds=-1),
            run(1, component_mean_s={"compute": float("inf")}),
            run(1, component_mean_s=["compute"]),
            {},
            None,
        ):
            with pytest.raises(ZtprobeError, match="expected"):
                collector.tell_run(wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="expected"):
            collector.tell_round(-1.0)
        resident: dict[str, Any] = {"ztprobe_agent_resident_bytes": {}}
        assert figures(url) | resident == found | resident
        for duration_s in (0.2, 3.0, 5000.0):
            collector.tell_round(duration_s)
        ended = figures(url)
        assert ended["ztprobe_agent_round_seconds_count"] == {"": 3}
        assert ended["ztprobe_agent_round_seconds_sum"] == {"": pytest.approx(5003.2)}
        buckets = ended["ztprobe_agent_round_seconds_bucket"]
        assert (buckets["0.1"], buckets["0.25"], buckets["5.0"], buckets["1000.0"]) == (0, 1, 2, 2)
