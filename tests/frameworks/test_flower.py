"""Unmodified Flower, traced while it runs: rounds by its log and its traffic, against its own clock."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from analysis.load import load_analysed
from tests.frameworks.flower import Options, clock_of, deployment
from tests.frameworks.tracing import traced, truth_of
from ztprobe.rundir.store import Run

MS = 1_000_000
IDLE_S = 20
EXACT_NS = 50 * MS  # how far a boundary may be from the application's own
OPTIONS = {
    "http": Options(version="1.42", clients=3, network="loopback", isolation="subprocess"),
    "http-process": Options(version="1.42", clients=5, network="bridged", isolation="process"),
    "grpc": Options(version="1.38", clients=3, network="bridged", isolation="subprocess"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_rounds_from_the_traffic_alone(kind: str, tmp_path: Path) -> None:
    run, clock = run_of(kind, tmp_path, rounds=4)
    truth = truth_of(clock)
    assert run.meta["attachment"]["rounds_from"]["source"] == "traffic"
    assert "inferred" in run.meta["attachment"]["rounds_from"]["detail"]
    check_rounds(run, clock)
    # Idle time before and behind the job holds none, and every event says how far off it may be.
    for event in run.rounds:
        assert truth[0].start_ns - EXACT_NS <= event["time_monotonic_ns"] <= truth[-1].end_ns + EXACT_NS
        assert event["time_from"] == "traffic" and event["uncertainty_ns"] > 0


@pytest.mark.parametrize("buffered", [False, True], ids=["as-it-comes", "kept-back"])
def test_rounds_that_the_log_names(buffered: bool, tmp_path: Path) -> None:
    """What `flwr run --stream` prints carries no time, and comes late: at the very end, printed to a file."""
    run, clock = run_of("http", tmp_path, rounds=3, log=True, buffered=buffered)
    assert run.meta["attachment"]["rounds_from"]["source"] == "log"
    assert run.meta["attachment"]["framework"]["name"] == "flower"
    check_rounds(run, clock)
    ends = [event for event in run.rounds if event["event"] == "round_end"]
    assert all(event["results"] == 3 and event["failures"] == 0 for event in ends)


def run_of(
    kind: str, directory: Path, *, rounds: int, log: bool = False, buffered: bool = False
) -> tuple[Run, list[dict[str, object]]]:
    """A traced job, with idle time around it. :returns: the run, and what the app noted"""
    out = directory / "run"
    with deployment(directory / "flower", OPTIONS[kind]) as flower:
        flower.run_log.touch()
        options = ["--events-from", str(flower.run_log)] if log else []
        pids = [node.pid for node in flower.supernodes]
        server = flower.superlink.pid
        if flower.executor_pid is not None:  # the ServerApp is no child of the SuperLink's
            options += ["--hub", f"pid:{server}"]
            server = flower.executor_pid
        with traced(server, pids, out, *options):
            time.sleep(IDLE_S)
            job = flower.start_run(buffered=buffered, num_server_rounds=rounds, examples=96)
            flower.wait(job, timeout_s=60 * rounds)
            time.sleep(IDLE_S)
        return load_analysed(out).run, clock_of(flower.clock_directory)


def check_rounds(run: Run, clock: list[dict[str, object]]) -> None:
    """Every round is there by its number, and begins and ends when the app says so."""
    truth = truth_of(clock)
    found = {(event["event"], event["round"]): event["time_monotonic_ns"] for event in run.rounds}
    assert sorted(found) == sorted(
        (name, one.number) for one in truth for name in ("round_start", "round_end")
    )
    off = {
        f"{name} {one.number}": abs(found[name, one.number] - ns)
        for one in truth
        for name, ns in (("round_start", one.start_ns), ("round_end", one.end_ns))
    }
    print(json.dumps({name: round(ns / MS, 1) for name, ns in off.items()}))
    assert max(off.values()) <= EXACT_NS, off
