"""However a run ends, the machine is as it was, and the next run works."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.command import Trace, run
from tests.e2e.machine import assert_nothing_left, look

# Everything that a run can bring up: policies, sidecars, and the delay line or netem.
_WHOLE = ("--experiment", "net2-sec3", "--no-baseline", "--rounds", "2", "--clients", "1")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Trace]]:
    """Start traces into ``tmp_path/run`` (or another name); none of them outlives the test."""
    started = []

    def begin(*arguments: str, name: str = "run") -> Trace:
        started.append(Trace.start(tmp_path / name, *arguments))
        return started[-1]

    yield begin
    for trace in started:
        trace.end()


@pytest.mark.parametrize(
    ("signum", "moment"),
    [
        pytest.param(
            signal.SIGINT,
            lambda trace: any(not name.startswith("job-") for name in trace.journals),
            id="SIGINT-while-pods-are-made",
        ),
        pytest.param(signal.SIGINT, lambda trace: trace.said("dns "), id="SIGINT-while-measuring"),
        pytest.param(signal.SIGINT, lambda trace: trace.said("fl-server's proxy"), id="SIGINT-in-round-1"),
        pytest.param(signal.SIGTERM, lambda trace: trace.said("network profile"), id="SIGTERM-while-proving"),
        pytest.param(signal.SIGHUP, lambda trace: trace.said("probes"), id="SIGHUP-while-emulation-starts"),
    ],
)
def test_an_interrupted_run_leaves_nothing(
    start: Callable[..., Trace], tmp_path: Path, signum: signal.Signals, moment: Callable[[Trace], bool]
) -> None:
    before = look()
    trace = start(*_WHOLE)
    trace.until(moment)
    outcome = trace.interrupt(signum)
    assert outcome.status == 128 + signum
    assert outcome.stdout == ""
    assert outcome.stderr.splitlines()[-1] == (
        f"ztprobe: interrupted ({signum.name}); everything has been cleaned up"
    )
    assert "Traceback" not in outcome.stderr
    assert list(tmp_path.iterdir()) == []
    assert_nothing_left(before, trace)


def test_a_second_ctrl_c_does_not_break_the_clean_up(start: Callable[..., Trace], tmp_path: Path) -> None:
    before = look()
    trace = start("--experiment", "net0-sec3", "--no-baseline", "--rounds", "2", "--clients", "1")
    trace.until(lambda trace: trace.said("fl-server's proxy"))
    trace.process.send_signal(signal.SIGINT)
    trace.process.send_signal(signal.SIGINT)
    outcome = trace.interrupt(signal.SIGTERM)
    # Signals of one kind that come at once are one; whichever is first decides.
    assert outcome.status in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert "Traceback" not in outcome.stderr
    assert list(tmp_path.iterdir()) == []
    assert_nothing_left(before, trace)


def test_clean_takes_away_what_a_killed_run_left_and_the_next_run_works(
    start: Callable[..., Trace], tmp_path: Path
) -> None:
    before = look()
    trace = start(*_WHOLE)
    trace.until(lambda trace: trace.said("fl-server's proxy"))
    trace.interrupt(signal.SIGKILL)
    assert look() != before, "the killed run left nothing to clean"

    cleaned = run("clean")
    assert (cleaned.status, cleaned.stderr) == (0, "")
    (run_id,) = (name for name in trace.journals if not name.startswith("job-"))
    assert f"{run_id}: network namespace ztp-{run_id}-node removed" in cleaned.stdout.splitlines()
    assert_nothing_left(before, trace)
    assert list(tmp_path.iterdir()) == []
    assert run("clean").stdout == "nothing to clean\n"

    again = start("--experiment", "net0-sec0", "--rounds", "1", "--clients", "1")
    outcome = again.wait()
    assert outcome.status == 0, outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["complete"] is True
    assert_nothing_left(before, again)


def test_two_runs_at_once_do_not_meet_and_clean_leaves_them_alone(
    start: Callable[..., Trace], tmp_path: Path
) -> None:
    before = look()
    small = ("--no-baseline", "--rounds", "1", "--clients", "1")
    one = start("--experiment", "net0-sec3", *small, name="one run")
    other = start("--experiment", "net0-sec3", *small, name="other")
    for trace in (one, other):
        trace.until(lambda trace: trace.said("probes"))
    cleaned = run("clean")
    assert cleaned.status == 0
    assert not [run_id for trace in (one, other) for run_id in trace.journals if run_id in cleaned.stdout]
    for trace in (one, other):
        outcome = trace.wait()
        assert outcome.status == 0, outcome.stderr
        assert_nothing_left(before, trace)
        # Who reads what: bytes of the other run in this one's ledger would be seen here.
        report = json.loads((trace.out / "report.json").read_text())
        assert [r["exchanges"] for r in report["rounds"]] == [1.0]
        assert report["loss"]["unknown_pod"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one run", "other"]
