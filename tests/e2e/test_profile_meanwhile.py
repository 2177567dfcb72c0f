"""`ztprobe profile` on the pods of a trace that goes on: verified, told in its report, and no harm done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.command import Trace, run
from tests.e2e.losses import assert_nothing_lost
from ztprobe.paths import LEASES, STATE_DIR

ROUNDS = 5
NETFILTER_DROP = "NETFILTER_DROP"


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Trace]:
    words = ("--experiment", "net0-sec3", "--no-baseline", "--clients", "2", "--rounds", str(ROUNDS))
    started = Trace.start(tmp_path / "run", *words, "--json")
    yield started
    started.end()
    run("clean")


@pytest.mark.long
def test_a_profile_put_on_a_running_trace(trace: Trace) -> None:
    trace.until(lambda t: t.said(f"round 2 of {ROUNDS}"))
    (name,) = (run_id for run_id, journal in trace.journals.items() if journal.get("pods"))
    applied = run("profile", "apply", "net1", "-l", "app=fl-client", "--run", name, "--for", "1m", "--json")
    assert applied.status == 0, applied.stderr
    lease = json.loads(applied.stdout)["lease"]
    verified = run("profile", "verify", lease, "--json")
    assert verified.status == 0, (verified.stdout, verified.stderr)
    assert run("profile", "clear", lease).status == 0
    assert not (STATE_DIR / LEASES / lease).exists()
    outcome = trace.wait()
    assert outcome.status == 0, outcome.stderr
    assert f"net1 is now on egress of fl-client-0, fl-client-1 as well (lease {lease})" in outcome.stderr
    assert outcome.stderr.count(f"net1 is off again (lease {lease})") == 1
    assert not (STATE_DIR / name).exists()

    report = json.loads(outcome.stdout)
    rounds = report["rounds"]
    assert [one["round"] for one in rounds] == list(range(1, ROUNDS + 1))
    (other,) = report["emulation"]["others"]
    assert (other["lease"], other["profile"], other["to"]) == (lease, "net1", None)
    under = [one["round"] for one in rounds if one.get("other_profiles") == ["net1"]]
    assert under and 1 not in under, under
    assert other["to_ns"] - other["from_ns"] < 60e9
    (note,) = (note for note in report["notes"] if lease in note)
    assert note.startswith("net1 (delay 20 ms, jitter 5 ms) was on egress of 2 pods")
    # What verify sent is neither traffic of the rounds nor stopped by their policies.
    assert all(one["components"]["policy_drop"] == 0 for one in rounds)
    assert_nothing_lost(report)
    meta = json.loads((trace.out / "run.json").read_text())
    drops = pq.read_table(trace.out / "events" / "drops.parquet").to_pandas()
    assert NETFILTER_DROP not in set(drops["reason"][drops["ts_ns"] > meta["clients_started_ns"]])
