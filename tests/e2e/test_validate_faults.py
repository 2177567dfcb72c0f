"""Runs that are really broken, what a diagnosis makes of them, and nothing that is left afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.command import run
from tests.e2e.machine import look
from ztprobe.rundir.store import load_run

pytestmark = pytest.mark.long

# Fast ones, of three failure classes: an object, a process, a message.
CHOSEN = ("policy-default-deny-1", "application-server-died-1", "application-message-too-large-1")


def test_faults_are_there_and_named_and_a_second_call_makes_none_anew(tmp_path: Path) -> None:
    out = tmp_path / "faults"
    before = look()
    options = [word for name in CHOSEN for word in ("--scenario", name)]
    ended = run("validate", "--faults", *options, "--out", out, "--json")
    assert ended.status == 0, ended
    content = json.loads(ended.stdout)
    assert content == json.loads((out / "faults.json").read_text())
    assert (content["faults"], content["first"], content["did_not_show"]) == (3, 3, [])
    assert look() == before
    # Each run failed, is whole nevertheless, and holds what it ran on.
    for name in CHOSEN:
        assert load_run(out / "runs" / name).meta["failed"]["reason"]
    assert "policy dropped fl-client-" in (out / "observed" / f"{CHOSEN[0]}.txt").read_text()
    objects = (out / "manifests" / CHOSEN[0] / "overlays" / "sec1" / "objects.yaml").read_text()
    assert "name: default-deny" in objects
    assert "name: fl-server-from-clients" not in objects
    assert "<svg" in (out / "confusion.svg").read_text()

    # Only what has no result is made again.
    (out / "results" / f"{CHOSEN[1]}.json").unlink()
    kept = {name: (out / "runs" / name / "run.json").stat().st_mtime_ns for name in CHOSEN}
    again = run("validate", "--faults", "--resume", out, "--json")
    assert again.status == 0, again
    made = [name for name in CHOSEN if (out / "runs" / name / "run.json").stat().st_mtime_ns != kept[name]]
    assert made == [CHOSEN[1]]
    assert look() == before
