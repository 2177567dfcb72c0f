"""Both runs of a pair at once: each has its own cores, and who uses one half spoils that half's run alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from bench.duet import measure_duet
from tests.e2e.command import Trace, run
from tests.e2e.machine import assert_nothing_left, look
from tests.e2e.test_contention import counted_rounds
from ztprobe.errors import WorkloadError
from ztprobe.experiment.names import Experiment
from ztprobe.process.own_cpus import halves
from ztprobe.progress import QuietProgress
from ztprobe.study.pairs import run_pairs
from ztprobe.study.plan import Cell, Study

_PAIR = ("--experiment", "net0-sec1", "--repeat", "1", "--duet", "--clients", "2", "--rounds", "6")
_CELLS = ("net0-sec0", "net0-sec1")
_COMPETITOR = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two runs at once need two CPUs")


class Looker:
    """Which CPUs a command's two runs may use and are found on, by the kernel's account of every thread."""

    def __init__(self, trace: Trace) -> None:
        self._trace = psutil.Process(trace.process.pid)
        self.allowed: dict[int, set[frozenset[int]]] = {}  # by the run's own process
        self.found: dict[int, set[int]] = {}
        self.seen: dict[int, set[int]] = {}  # threads
        self._ran: dict[int, str] = {}

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(0.5):  # each look costs a few milliseconds of somebody's CPU
                self._look()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self) -> None:
        with contextlib.suppress(psutil.Error):
            for run in self._trace.children():
                if "resource_tracker" in " ".join(run.cmdline()):
                    continue  # the command's own, which waits for its end
                for process in (run, *run.children(recursive=True)):
                    for thread in _threads(process.pid):
                        with contextlib.suppress(OSError):
                            self._look_at(run.pid, Path(f"/proc/{process.pid}/task/{thread}"))

    def _look_at(self, run: int, place: Path) -> None:
        thread = int(place.name)
        self.allowed.setdefault(run, set()).add(frozenset(os.sched_getaffinity(thread)))
        self.seen.setdefault(run, set()).add(thread)
        # proc_pid_stat(5): the 39th field is the CPU that it ran on last, which may be long ago.
        on = int((place / "stat").read_text().rpartition(")")[2].split()[36])
        ran = (place / "schedstat").read_text().split()[0]
        if self._ran.setdefault(thread, ran) != ran:
            self.found.setdefault(run, set()).add(on)


def _threads(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return []


def rounds_of(run: Path) -> tuple[int, int]:
    spans = counted_rounds(run)
    return spans[0][0], spans[-1][1]


def test_each_run_has_its_own_half_of_the_cores(tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    trace = Trace.start(out, *_PAIR, watched=False)
    try:
        trace.until(lambda _: sum("round 1 of" in line for line in trace.lines) == 2)
        looker = Looker(trace)
        with looker.looking():
            trace.until(lambda _: sum("round 5 of" in line for line in trace.lines) == 2)
        outcome = trace.wait()
    finally:
        trace.end()
    expected = [frozenset(half) for half in halves()]
    assert sorted(map(sorted, looker.found.values())) == sorted(map(sorted, expected))
    assert sorted(sorted(*allowed) for allowed in looker.allowed.values()) == sorted(map(sorted, expected))
    assert all(len(threads) > 10 for threads in looker.seen.values())  # agent, server, clients
    runs = {name: out / "runs" / f"{name}-c2" / "r01" for name in _CELLS}
    for name, path in runs.items():
        meta = json.loads((path / "run.json").read_text())
        other = next(each for each in _CELLS if each != name)
        assert meta["own_cores"]["beside"] == other and meta["own_cores"]["of"] == os.cpu_count()
        assert frozenset(meta["own_cores"]["cpus"]) in expected
        assert meta["cores"] == meta["machine_load"]["cpus"] == len(expected[0])
        report = json.loads((path / "report.json").read_text())
        assert report["rounds_counted"] == 5
        assert any("for itself, while" in note for note in report["notes"])
    (first, second) = (rounds_of(path) for path in runs.values())
    together = min(first[1], second[1]) - max(first[0], second[0])
    share = together / max(end - begin for begin, end in (first, second))
    assert share > 0.5
    # Others may disturb a pair three times; then it is kept, and nothing is said of it.
    if outcome.status == 0:
        comparison = json.loads((out / "comparison.json").read_text())
        assert comparison["duet"]["together_share"] == pytest.approx(share, abs=0.01)
        assert "Both runs of a pair ran at once" in " ".join(outcome.stdout.split())
    else:
        assert "others used the machine during 1 pair of 1" in outcome.stderr


def test_who_uses_one_half_spoils_that_run_alone(tmp_path: Path) -> None:
    cells = tuple(Cell(experiment=Experiment(profile="net0", level=level), clients=2) for level in (0, 1))
    study = Study(name="pair", rounds=5, cells=cells, duet=True, contention_retries=0)
    disturbed = halves()[1][-1]
    command = [sys.executable, "-S", "-c", _COMPETITOR, str(disturbed)]
    with subprocess.Popen(command) as competitor:
        try:
            with pytest.raises(WorkloadError, match="others used the machine during 1 pair of 1"):
                run_pairs(study, tmp_path / "pairs", QuietProgress())
        finally:
            competitor.kill()
    shares: dict[bool, dict[str, Any]] = {}
    for planned in study.runs():
        path = tmp_path / "pairs" / planned.directory
        cpus = json.loads((path / "run.json").read_text())["own_cores"]["cpus"]
        judged = json.loads((path / "report.json").read_text())["contention"]["run"]
        assert judged["own_cpus"] == cpus
        shares[disturbed in cpus] = judged
    # It competes with the run for its CPU, and has it alone while that one waits for the other.
    assert shares[True]["busy"] == ["foreign_share"]
    assert shares[True]["foreign_cpus"] > 0.25
    assert shares[False]["foreign_cpus"] < shares[True]["foreign_cpus"] / 4


@pytest.mark.long
def test_what_slows_all_cores_for_a_while_hardly_widens_the_interval() -> None:
    """Pairs of either kind in turns, while up to half of every CPU is taken away, the same of all."""
    found = measure_duet(6, 5, 1, lambda _: None, disturbed=True)
    assert len(found.one_by_one) == len(found.at_once) == 6
    _ratio, _low, high = found.narrower()
    assert high < 1, found


def test_a_killed_pair_leaves_nothing_and_is_made_by_the_next_call(tmp_path: Path) -> None:
    before = look()
    out = tmp_path / "pairs"
    trace = Trace.start(out, *_PAIR)
    try:
        trace.until(lambda _: sum("round 2 of" in line for line in trace.lines) == 2)
        children = psutil.Process(trace.process.pid).children(recursive=True)
        trace.interrupt(signal.SIGKILL)
    finally:
        trace.end()
    # The runs end with the command, each after it has removed what it made.
    _gone, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert not list(out.glob("runs/*/*/run.json"))
    outcome = run("trace", *_PAIR, "--out", out)
    assert outcome.status in (0, 1), outcome
    assert "left by an interrupted run" in outcome.stderr
    assert len(list(out.glob("runs/*/r01/run.json"))) == 2
    assert not list(out.rglob("*partial*"))
    assert_nothing_left(before, trace)
