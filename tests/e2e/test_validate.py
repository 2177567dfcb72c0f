"""Known costs in real runs, found where they were put; and what else the command promises."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.e2e.command import Trace, run
from tests.e2e.machine import assert_nothing_left, look
from ztprobe.rundir.store import load_run

# One with the sidecar, one with a packet that is held and two costs at once.
CHOSEN = ("proxy-stop", "two-at-once")


@pytest.mark.long
def test_injected_costs_are_attributed_within_their_bounds(tmp_path: Path) -> None:
    out = tmp_path / "validation"
    before = look()
    options = [word for name in CHOSEN for word in ("--scenario", name)]
    ended = run("validate", *options, "--out", out, "--json")
    assert ended.status == 0, ended
    content = json.loads(ended.stdout)
    assert content == json.loads((out / "validation.json").read_text())
    assert content["passed"]
    scenarios = {scenario["name"]: scenario for scenario in content["scenarios"]}
    assert set(scenarios) == set(CHOSEN)
    assert {case["where"] for case in scenarios["two-at-once"]["cases"]} == {"tcp_handshake", "server"}
    for scenario in scenarios.values():
        assert not scenario["problems"]
        for case in scenario["cases"]:
            assert case["injections"] >= 3
            assert abs(case["error_ms"]) <= case["bound_ms"]
            assert case["true_ms"] > 0.5
    assert "<svg" in (out / "validation.html").read_text()
    # Each is a run like any other, and the captures are gone.
    for name in CHOSEN:
        assert load_run(out / name).meta["options"]["environment"]
    assert not list(tmp_path.glob("**/*.pcap"))
    assert look() == before
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())
    ]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL], ids=lambda signum: signum.name)
def test_a_validation_that_is_ended_early_leaves_nothing(tmp_path: Path, signum: signal.Signals) -> None:
    before = look()
    started = Trace.start(tmp_path / "validation", "--scenario", "server-delay", command="validate")
    try:
        started.until(lambda s: any(journal.get("processes") for journal in s.journals.values()))
        outcome = started.interrupt(signum)
    finally:
        started.end()
    if signum == signal.SIGKILL:
        assert run("clean").status == 0
    else:
        assert outcome.status == 128 + signum
        assert outcome.stderr.endswith("interrupted (SIGINT); everything has been cleaned up\n")
    assert list(tmp_path.iterdir()) == []
    assert_nothing_left(before, started)
