"""Debian's Prometheus scrapes an agent: each query of the dashboard finds a series, and the right one."""

from __future__ import annotations

import json
import re
import statistics
import time
from contextlib import closing
from pathlib import Path

import pytest

from analysis.results.frames import load
from analysis.results.round_figures import round_figures
from tests.prometheus import DASHBOARD, asked, by_label, prometheus, queries
from tests.unit.recorded_run import RECORDED
from tests.unit.test_tally import ACK, ETH, PODS, REASONS, RX, SYN, TX, packet, rows
from ztprobe.agent.counts import Counts
from ztprobe.agent.service.client import Connection
from ztprobe.agent.service.metrics import Metrics
from ztprobe.agent.service.server import AgentServer
from ztprobe.agent.service.session import Sessions
from ztprobe.agent.tally import EventTally
from ztprobe.events.kinds import EventKind


def traffic(tally: EventTally, number: int) -> None:
    """A connection of pod a to pod b that is answered after 2 ms, a message of 10 ms, a drop."""
    syn, answer = packet(number, 0, SYN, TX), packet(number, 2_000_000, SYN | ACK, RX)
    burst = {"hook": ETH, "ts_ns": 10_000_000, "bytes": 1000}
    sent, received = burst | {"netns": 7, "direction": TX}, burst | {"netns": 8, "direction": RX}
    again = {"kind": int(EventKind.RETRANSMISSION)}
    for ring, records in (
        ("packets", [syn, answer]),
        ("bursts", [sent, received]),
        ("drops", [{"reason": 6}]),
        ("points", [again]),
    ):
        tally.count(ring, rows(ring, *records), PODS, REASONS)


def test_every_query_of_the_dashboard_finds_a_series(tmp_path: Path) -> None:
    tally, sessions = EventTally(), Sessions(tmp_path / "agent", queue_bytes=1 << 20, orphan_s=60)
    report = load(RECORDED).report
    told = round_figures(report)
    server: AgentServer

    def counts() -> Counts:
        return {**server.tally(), **tally.counts()}

    with (
        closing(AgentServer(f"unix:{tmp_path}/socket", sessions, tls=None)) as server,
        closing(Metrics("127.0.0.1:0", None, server.status, server.delivered, counts)) as metrics,
        closing(Connection(f"unix:{tmp_path}/socket", None)) as collector,
        prometheus(tmp_path, metrics.port) as scraped,
    ):
        end = time.monotonic() + 60
        number = 0
        wanted = queries()
        assert len(wanted) >= 17
        collector.tell_run(told)
        while wanted:
            assert time.monotonic() < end, f"{wanted}: {(tmp_path / 'prometheus.log').read_text()[-2000:]}"
            traffic(tally, number := number + 1)
            collector.tell_round(2.0)
            time.sleep(0.5)
            for name in [name for name, query in wanted.items() if asked(scraped, query)]:
                del wanted[name]

        def settled(query: str) -> dict[tuple[str, ...], float]:
            return by_label(asked(scraped, query))

        while settled("ztprobe_agent_connections_total") != {(): number}:
            assert time.monotonic() < end
            time.sleep(0.2)
        assert settled("ztprobe_agent_handshake_seconds_count") == {(): number}
        assert settled("ztprobe_agent_handshake_seconds_sum")[()] == pytest.approx(0.002 * number)
        assert settled("ztprobe_agent_retransmissions_total") == {(): number}
        assert settled("ztprobe_agent_drops_total") == {("NETFILTER_DROP",): number, ("other",): 0}
        sent = settled('ztprobe_agent_communication_seconds_total{direction="sent"}')
        assert sent == {("sent", "fl/a"): pytest.approx(0.01 * number), ("sent", "fl/b"): 0}
        assert settled("ztprobe_agent_round_seconds_count") == {(): number}
        assert settled("ztprobe_agent_round_seconds_sum") == {(): 2.0 * number}
        (typical,) = settled(queries()["Rounds, as they end A"]).values()
        assert 1 < typical <= 2.5  # the bucket that 2 s are in
        parts = settled(queries()["A round of the latest run, by component A"])
        lasted_s = [one["duration_s"] for one in report["rounds"]]
        assert sum(parts.values()) == pytest.approx(statistics.fmean(lasted_s))
        clients = settled(queries()["Communication in a round of the latest run, by client A"])
        assert {who for who, _ in clients} == {"fl-client-0", "fl-client-1"}
        longest_s = told["communication_longest_s"]["fl-client-1"]
        assert clients["fl-client-1", "longest"] == pytest.approx(longest_s)
        median = queries()["TCP handshakes A"]
        (between,) = settled(median).values()
        assert 0.001 < between <= 0.0025  # the bucket that 2 ms is in
    sessions.close()


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    """Its own rules: panels do not overlap, ids are theirs alone, and every variable is declared."""
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    declared = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__rate_interval"} == declared
