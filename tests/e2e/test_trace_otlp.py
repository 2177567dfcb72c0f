"""A finished run's rounds as spans at a collector; and what is said where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.command import run
from tests.otlp_collector import Collector, attributes_of

ROUNDS, CLIENTS = 3, 2


def traced(out: Path, url: str) -> tuple[object, ...]:
    words = ("trace", "--experiment", "net0-sec0", "--no-baseline", "--clients", str(CLIENTS))
    return (*words, "--rounds", str(ROUNDS), "--out", out, "--otlp", url)


def test_a_collector_has_every_round_once_the_run_is_over(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Collector() as collector:
        outcome = run(*traced(out, collector.url), "--json")  # type: ignore[arg-type]
    assert outcome.status == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert f"{len(collector.spans)} sent to {collector.url}/v1/traces" in outcome.stderr
    whole = [(who, span) for who, span in collector.spans if not span.parent_span_id]
    assert [who for who, _ in whole] == ["server"] * ROUNDS
    for (_, span), one in zip(whole, report["rounds"], strict=True):
        assert attributes_of(span)["fl.round"] == one["round"]
        lasted_s = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert lasted_s == pytest.approx(one["duration_s"], abs=1e-6)
    first_unix_s = whole[0][1].start_time_unix_nano / 1e9
    assert first_unix_s == pytest.approx(report["started_unix_s"], abs=1e-3)
    parts = {attributes_of(span).get("ztprobe.component") for _, span in collector.spans} - {None}
    assert {"compute", "transmission", "server"} <= parts


def test_a_run_is_not_lost_where_nobody_takes_its_spans(tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = run(*traced(out, "http://127.0.0.1:9"))  # type: ignore[arg-type]
    assert outcome.status == 1
    (why,) = (line for line in outcome.stderr.splitlines() if "--otlp" in line)
    assert "takes no spans; is an OTLP collector (HTTP) listening there?" in why
    assert f"`ztprobe export {out} --format otlp --endpoint http://127.0.0.1:9/v1/traces`" in why
    assert "transmission" in outcome.stdout  # the table
    assert len(json.loads((out / "report.json").read_text())["rounds"]) == ROUNDS


def test_what_cannot_be_sent_is_refused_before_anything_runs(tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = run(*traced(out, "127.0.0.1:4318"))  # type: ignore[arg-type]
    outcome.assert_refused(2, "expected http://HOST:PORT")
    outcome = run(*traced(out, "http://127.0.0.1:4318"), "--repeat", "2")  # type: ignore[arg-type]
    outcome.assert_refused(2, "--otlp", "with --repeat there are many")
    assert not out.exists()
