"""``ztprobe limits``: where a real deployment stops working."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.command import run

pytestmark = pytest.mark.long


def test_a_round_needs_as_many_updates_as_the_server_says(tmp_path: Path) -> None:
    """Three updates make a round, so one of four clients may be missing, and two may not."""
    out = tmp_path / "search"
    arguments = ("--experiment", "net0-sec0", "--vary", "clients-missing", "--clients", "4", "--rounds", "2")
    more = ("--round-deadline", "8", "--confirm", "0", "--out", out, "--json")
    outcome = run("limits", *arguments, *more)
    assert outcome.status == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert (report["works"], report["fails"]) == (1, 2)
    by_value = {one["value"]: one for one in report["tries"]}
    assert sorted(by_value) == [0, 1, 2, 4]
    assert by_value[1]["rounds"] == [1, 2] and by_value[1]["duration_s"] > 7.9  # each waited for its deadline
    assert "updates came within 8 s" in by_value[2]["reason"]
    again = run("limits", *arguments, *more)
    assert json.loads(again.stdout) == report  # nothing is run twice
    assert "seed 0: works" in again.stderr and "pods" not in again.stderr
