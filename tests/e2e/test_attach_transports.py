"""Servers and clients that speak with each other directly, over every transport: components against truth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from analysis.ledger.ledger import windows_of
from analysis.rounds.round_source import settled
from tests.e2e.command import Trace
from tests.e2e.deployments import places
from tests.e2e.direct_deployments import Deployed, deployment, loopback
from tests.generic_direct import Settings
from tests.generic_truth import DirectTruth
from ztprobe.rundir.store import load_run

# Between a system call and the line that logs it; besides, as long as the process waited for a CPU.
ABSOLUTE_S, RELATIVE = 0.05, 0.05
# A byte's part of what libraries do with a message between the socket and the application: they copy it.
COPIED_S = 3e-9
SAME_TIME_S = 0.001
RATE_MBIT = 40
FRAME_SHARE = 1514 / 1448  # of a full frame, what is payload


def traced(made: Deployed, out: Path, *more: str) -> dict[str, Any]:
    """The report of all of its rounds."""
    rounds = ("--rounds", str(made.settings.rounds), "--for", "150s")
    log = made.directory / "server.jsonl"
    trace = Trace.start(out, "--attach", *made.targets, "--events-from", str(log), *rounds, *more)
    trace.until(lambda trace: trace.said("probes"))
    (made.directory / "go").touch()
    outcome = trace.wait()
    assert outcome.status == 0, outcome.stderr
    return dict(json.loads((out / "report.json").read_text()))


def assert_is_true(report: dict[str, Any], settings: Settings) -> None:
    """Every round closes, and its components are what was injected."""
    truth = DirectTruth(Path(settings.directory))
    assert [one["round"] for one in report["rounds"]] == list(range(1, settings.rounds + 1))
    for one in report["rounds"]:
        parts = one["components"]
        assert sum(parts.values()) + one["residual_s"] == pytest.approx(one["duration_s"], abs=1e-6)
        assert one["residual_s"] <= 0.05 * one["duration_s"], one
        last, decides = truth.last(one["round"]), one["critical_client"]
        if last != decides:  # of two that arrive at the same time the server may log either first
            arrived_s = {each["client"]: each["arrival_s"] for each in one["clients"]}
            assert 0 <= arrived_s[decides] - arrived_s[last] <= SAME_TIME_S, one
        expected = truth.of_direct_round(one["round"], decides, polls=settings.poll_s > 0)
        more_s = truth.waited_s(one["round"], decides) + settings.message_bytes * COPIED_S
        for name, seconds in expected.items():
            allowed_s = max(ABSOLUTE_S, RELATIVE * seconds) + more_s
            assert abs(parts[name] - seconds) <= allowed_s, (name, seconds, more_s, one)


def assert_told_by_traffic(out: Path, settings: Settings) -> None:
    """Without the application's events the same rounds are found, within what is said of each boundary."""
    run = load_run(out)
    unknown = {"source": "traffic", "uncertainty_ns": 0, "detail": ""}
    meta = {**run.meta, "attachment": {**run.meta["attachment"], "rounds_from": unknown}}
    told = settled(dataclasses.replace(run, rounds=[], meta=meta)).rounds
    truth = DirectTruth(Path(settings.directory))
    assert len(windows_of(told)) == settings.rounds
    for event in told:
        true_s = truth.at("server", event["event"], round=event["round"])
        off_s = abs(event["time_monotonic_ns"] / 1e9 - true_s)
        assert off_s <= event["uncertainty_ns"] / 1e9 + ABSOLUTE_S, event


LARGE = {"message_bytes": 100_000_000, "train_s": 3.0, "rounds": 2, "clients": 1}
CHOICES = [
    pytest.param({"transport": "grpc", "shape": "streams", "parts": 4, "beat_s": 0.15}, id="grpc-streams"),
    *(
        pytest.param(chosen, id=name, marks=pytest.mark.long)
        for name, chosen in {
            "grpc-held": {"transport": "grpc"},
            "grpc-held-20kB": {"transport": "grpc", "message_bytes": 20_000},
            "grpc-polls-compressed": {
                "transport": "grpc",
                "poll_s": 0.4,
                "compressed": True,
                "message_bytes": 1_000_000,
            },
            "grpc-stream-tls-beats": {"transport": "grpc", "shape": "stream", "tls": True, "beat_s": 0.15},
            "grpc-streams-tls": {"transport": "grpc", "shape": "streams", "parts": 3, "tls": True},
            "grpc-stream-100MB": {"transport": "grpc", "shape": "stream", **LARGE},
            "grpc-streams-100MB": {"transport": "grpc", "shape": "streams", "parts": 4, **LARGE},
            "http-polls-parts": {"transport": "http", "parts": 3, "poll_s": 0.4},
            "http-held-tls": {"transport": "http", "tls": True},
            "http-polls-20kB-beats": {
                "transport": "http",
                "poll_s": 0.4,
                "message_bytes": 20_000,
                "beat_s": 0.15,
            },
            "http-held-compressed-parts": {
                "transport": "http",
                "compressed": True,
                "parts": 2,
                "message_bytes": 1_000_000,
            },
            "http-parts-100MB": {"transport": "http", "parts": 4, **LARGE},
        }.items()
    ),
]


@pytest.mark.parametrize("chosen", CHOICES)
def test_every_component_is_what_was_injected(chosen: dict[str, Any], tmp_path: Path) -> None:
    with loopback() as where, deployment(tmp_path / "it", where, **chosen) as made:
        report = traced(made, tmp_path / "run")
    assert_is_true(report, made.settings)
    assert_told_by_traffic(tmp_path / "run", made.settings)


@pytest.mark.long
@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param({"transport": "grpc", "shape": "streams", "parts": 3}, id="grpc-streams"),
        pytest.param({"transport": "grpc", "shape": "stream", "tls": True}, id="grpc-stream-tls"),
        pytest.param({"transport": "http", "parts": 3, "poll_s": 0.4}, id="http-polls-parts"),
    ],
)
def test_a_rate_that_is_really_put_in_is_transmission(chosen: dict[str, Any], tmp_path: Path) -> None:
    with places(3, rate_mbit=RATE_MBIT) as where, deployment(tmp_path / "it", where, **chosen) as made:
        report = traced(made, tmp_path / "run")
    assert_is_true(report, made.settings)
    one_way_s = made.settings.message_bytes * 8 * FRAME_SHARE / (RATE_MBIT * 1e6)
    truth = DirectTruth(made.directory)
    for one in report["rounds"]:
        moved_s = sum(one["components"][name] for name in ("propagation", "transmission", "retransmission"))
        # Who waits for a CPU sends and reads later.
        more_s = truth.waited_s(one["round"], one["critical_client"])
        assert 2 * one_way_s - ABSOLUTE_S <= moved_s <= 2 * one_way_s + ABSOLUTE_S + more_s, one
    # What was put there, nobody told: it was read from the kernel.
    observed = report["emulation"]["observed"]
    kinds = {pod: (one["interface"], one["kind"]) for pod, one in observed.items()}
    assert kinds == {"server": ("net0", "noqueue")} | dict.fromkeys(made.settings.names, ("net0", "tbf"))
    assert all(observed[name]["overlimits"] > 0 for name in made.settings.names)


IPV6 = [
    pytest.param({"transport": "grpc", "shape": "streams", "parts": 2}, id="grpc"),
    pytest.param({"transport": "http", "parts": 2, "poll_s": 0.4}, id="http", marks=pytest.mark.long),
]


@pytest.mark.long
@pytest.mark.parametrize("chosen", IPV6)
def test_ipv6_on_loopback(chosen: dict[str, Any], tmp_path: Path) -> None:
    with loopback(ipv6=True) as where, deployment(tmp_path / "it", where, **chosen) as made:
        report = traced(made, tmp_path / "run")
    assert_is_true(report, made.settings)
    assert_whole_of_ipv6(tmp_path / "run", {"::1"})


@pytest.mark.parametrize("chosen", IPV6)
def test_ipv6_between_namespaces_that_have_no_ipv4(chosen: dict[str, Any], tmp_path: Path) -> None:
    with places(3, ipv6=True) as where, deployment(tmp_path / "it", where, **chosen) as made:
        report = traced(made, tmp_path / "run")
    assert_is_true(report, made.settings)
    assert_whole_of_ipv6(tmp_path / "run", {address for _, address in where})


def assert_whole_of_ipv6(out: Path, addresses: set[str]) -> None:
    """Nothing of it was unreadable, and every connection is one of IPv6, with its whole addresses."""
    run = load_run(out)
    assert run.meta["loss"]["parse_failure"] == 0
    connections = run.events["connections"]
    assert set(connections["family"]) == {"ipv6"}
    assert {*connections["local"], *connections["remote"]} <= addresses
    assert set(run.events["owners"]["family"]) == {"ipv6"}
