"""Every client's way through a round: in report.json without a hole, and drawn on the page."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from analysis.ledger.ledger import build_ledger
from analysis.report.figures import draw_figures
from analysis.report.html import render_page
from analysis.report.report import build_report
from analysis.report.timeline import timeline_data
from tests.unit.recorded_run import recorded


@pytest.fixture(scope="module")
def report() -> dict:
    run = recorded()
    return json.loads(json.dumps(build_report(run, build_ledger(run), None)))


def page_data(html: str) -> dict:
    return json.loads(re.search(r'id="timeline-data">(.*?)</script>', html, re.S)[1])


def test_segments_fill_the_round_without_a_hole(report: dict) -> None:
    for one in report["rounds"]:
        for client in one["clients"]:
            edges = [(start, end) for _, start, end in client["segments"]]
            assert edges[0][0] == 0 and edges[-1][1] == one["duration_s"]
            assert all(before[1] == after[0] for before, after in itertools.pairwise(edges))


def test_the_critical_clients_segments_are_the_components(report: dict) -> None:
    for one in report["rounds"]:
        (critical,) = [client for client in one["clients"] if client["critical"]]
        for name, time_s in one["components"].items():
            spent_s = sum(end - start for part, start, end in critical["segments"] if part == name)
            assert spent_s == pytest.approx(time_s, abs=1e-8)


def test_the_page_carries_what_it_draws(report: dict) -> None:
    html = render_page(report, draw_figures(report))
    data = page_data(html)
    assert data == timeline_data(report)
    assert [number for number, *_ in data["rounds"]] == [one["round"] for one in report["rounds"]]
    for (_, duration_us, critical, clients), one in zip(data["rounds"], report["rounds"], strict=True):
        assert data["clients"][critical] == one["critical_client"]
        for _, flat, _ in clients:
            assert sum(flat[2::3]) == pytest.approx(duration_us, abs=len(flat))


def test_fifty_rounds_of_five_clients_stay_below_a_megabyte(report: dict) -> None:
    one = max(report["rounds"], key=lambda each: len(str(each["clients"])))
    clients = [one["clients"][i % 2] | {"client": f"fl-client-{i}"} for i in range(5)]
    many = report | {"rounds": [one | {"round": n, "clients": clients} for n in range(1, 51)]}
    assert len(render_page(many, draw_figures(many))) < 1_000_000


def test_a_name_cannot_end_the_script(report: dict) -> None:
    one = report["rounds"][0]
    bad = "</script><script>alert(1)</script>"
    named = [client | {"client": bad} for client in one["clients"][:1]]
    changed = report | {"rounds": [one | {"clients": named, "critical_client": bad}]}
    html = render_page(changed, draw_figures(changed))
    assert "<script>alert" not in html
    assert page_data(html)["clients"] == [bad]


def test_a_report_without_segments_has_no_drawing(report: dict) -> None:
    bare = [
        one | {"clients": [{**client, "segments": []} for client in one["clients"]]}
        for one in report["rounds"]
    ]
    old = report | {"rounds": bare}
    assert timeline_data(old) is None
    assert "timeline-data" not in render_page(old, draw_figures(old))
