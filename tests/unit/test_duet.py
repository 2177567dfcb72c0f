"""Both runs of a pair at once: a pair is there whole or not at all, whatever happens to one of its runs."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.results.comparison_text import print_comparison
from tests.schemas import problems
from tests.unit.recorded_run import RECORDED
from tests.unit.test_study import PAIR, busy_machine
from tests.unit.test_study_contention import noting
from ztprobe import paths
from ztprobe.errors import PreflightError, RunDirError, WorkloadError
from ztprobe.progress import QuietProgress
from ztprobe.study import duet
from ztprobe.study.duet import DuetRun, _Told
from ztprobe.study.pairs import run_pairs
from ztprobe.study.run_process import StudyProcess

DUET = dataclasses.replace(PAIR, duet=True, retries=1)
FILES = ("rounds.jsonl", "clients.jsonl", "run.json")


class Fake:
    """A run in place of a process: a recorded one, which it tells of at once."""

    begun: list[DuetRun] = []  # noqa: RUF012
    ends: dict[int, Any] = {}  # noqa: RUF012  how the n-th (from 1) ends instead
    busy: set[int] = set()  # noqa: RUF012
    given_up: list[str] = []  # noqa: RUF012

    def __init__(self, task: DuetRun) -> None:
        self.task = task
        self.told, theirs = multiprocessing.Pipe(duplex=False)
        Fake.begun.append(task)
        number = len(Fake.begun)
        source = RECORDED if task.planned.cell.name == "net2-sec3" else RECORDED / "baseline"
        for file in FILES:
            shutil.copy(source / file, task.partial / file)
        shutil.copytree(source / "events", task.partial / "events")
        if number in Fake.busy:
            busy_machine(task.partial)
        theirs.send("  round 1 of 7")
        theirs.send(_Told.READY)
        end = Fake.ends.get(number, _Told.MEASURED)
        if end is not None:
            theirs.send(end)
        theirs.close()

    hear = StudyProcess.hear

    def give_up(self) -> None:
        Fake.given_up.append(self.task.name)

    def await_end(self) -> str:
        return "the process that made it has ended before it was through (SIGKILL)"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Fake]:
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    monkeypatch.setattr(duet, "StudyProcess", Fake)
    monkeypatch.setattr(duet, "halves", lambda: ((0, 1), (2, 3)))
    Fake.begun, Fake.ends, Fake.busy, Fake.given_up = [], {}, set(), []
    return Fake


def failures(out: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(out.glob("attempts/*/failure.json"))]


def there(out: Path) -> int:
    return len(list(out.glob("runs/*/*/run.json")))


def test_every_pair_is_made_at_once_on_halves_that_are_drawn(fake: type[Fake], tmp_path: Path) -> None:
    said: list[str] = []
    comparison = run_pairs(DUET, tmp_path / "out", noting(said))
    assert (comparison["pairs"], len(fake.begun)) == (3, 6)
    assert problems("comparison", comparison) == []
    for first, second in zip(fake.begun[::2], fake.begun[1::2], strict=True):
        assert [one.own_cores.cpus for one in (first, second)] == [(0, 1), (2, 3)]
        assert first.own_cores.beside == second.planned.cell.experiment.name
        assert {first.planned.cell, second.planned.cell} == set(PAIR.cells)
    assert len({one.planned.cell for one in fake.begun[::2]}) == 2  # neither always has the same half
    assert said[0].startswith("1 and 2 of 6, at once: ")
    assert any(line.endswith(": round 1 of 7") for line in said)


def test_how_long_they_ran_together_is_told(fake: type[Fake], tmp_path: Path, capsys) -> None:
    comparison = run_pairs(DUET, tmp_path / "out", QuietProgress())
    # The recorded runs were made one after the other.
    assert comparison["duet"] == {"together_share": 0.0}
    print_comparison(comparison)
    printed = " ".join(capsys.readouterr().out.split())
    assert "together for 0.0 % of the longer run's time; in the rest what slowed it is not in" in printed
    one_by_one = dataclasses.replace(DUET, duet=False)
    assert one_by_one.as_dict() == PAIR.as_dict() and "duet" not in one_by_one.as_dict()
    with pytest.raises(RunDirError, match="holds a study of another plan"):
        run_pairs(one_by_one, tmp_path / "out", QuietProgress())


@pytest.mark.parametrize("end", [WorkloadError("a pod died"), None], ids=["failed", "killed"])
def test_one_that_fails_has_the_pair_made_anew(fake: type[Fake], tmp_path: Path, end: Any) -> None:
    fake.ends = {2: end}
    said: list[str] = []
    out = tmp_path / "out"
    comparison = run_pairs(DUET, out, noting(said))
    assert (comparison["pairs"], len(fake.begun), there(out)) == (3, 8, 6)
    (failure,) = failures(out)
    expected = "a pod died" if end is not None else "ended before it was through (SIGKILL)"
    assert failure["class"] == "workload" and expected in failure["message"]
    failed, *_ = out.glob("attempts/*")
    assert failed.name == f"{fake.begun[1].name}-1" and (failed / "run.json").exists()
    assert {one.name for one in fake.begun[:2]} <= set(fake.given_up)
    assert any("attempt 2" in line for line in said)
    assert not list(out.rglob("*partial*"))


def test_a_pair_whose_attempts_are_used_up_is_not_there(fake: type[Fake], tmp_path: Path) -> None:
    fake.ends = {1: WorkloadError("a pod died"), 3: WorkloadError("a pod died")}
    comparison = run_pairs(DUET, tmp_path / "out", QuietProgress())
    assert fake.begun[0].planned == fake.begun[2].planned
    assert (comparison["pairs"], there(tmp_path / "out")) == (2, 4)


def test_one_that_others_disturbed_spoils_the_pair(fake: type[Fake], tmp_path: Path) -> None:
    fake.busy = {1}
    said: list[str] = []
    comparison = run_pairs(DUET, tmp_path / "out", noting(said))
    assert [comparison[name] for name in ("pairs", "left_out_pairs", "repeated_runs")] == [3, 0, 1]
    (failure,) = failures(tmp_path / "out")
    assert failure["class"] == "contention"
    assert sum("its pair is made anew" in line for line in said) == 1


def test_a_pair_that_stays_disturbed_is_left_out(fake: type[Fake], tmp_path: Path) -> None:
    fake.busy = {1, 3, 5}
    said: list[str] = []
    comparison = run_pairs(DUET, tmp_path / "out", noting(said))
    assert [comparison[name] for name in ("pairs", "left_out_pairs", "repeated_runs")] == [2, 1, 2]
    assert sum("it stays, and its pair is left out of what is said" in line for line in said) == 1


def test_one_that_a_kill_left_alone_is_set_aside(fake: type[Fake], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_pairs(DUET, out, QuietProgress())
    lost = next(DUET.runs())
    shutil.rmtree(out / lost.directory)
    fake.begun.clear()
    said: list[str] = []
    comparison = run_pairs(DUET, out, noting(said))
    assert (comparison["pairs"], len(fake.begun), there(out)) == (3, 2, 6)
    (failure,) = failures(out)
    assert "the other run of its pair is not there" in failure["message"]
    assert any("the other run of its pair is not there" in line for line in said)


@pytest.mark.parametrize("error", [PreflightError("no probes"), KeyboardInterrupt()])
def test_what_ends_the_study_leaves_nothing_behind(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def hear(self: Fake) -> Any:
        raise error

    monkeypatch.setattr(fake, "hear", hear)
    with pytest.raises(type(error)):
        run_pairs(DUET, tmp_path / "out", QuietProgress())
    assert set(fake.given_up) == {one.name for one in fake.begun}
    assert there(tmp_path / "out") == 0
    assert not list((tmp_path / "out").rglob("*partial*"))
    assert not list((tmp_path / "state").glob("*"))


def test_neither_is_there_when_one_cannot_be_put_in_its_place(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    real: Callable[..., Any] = duet.appearing_whole
    names: list[str] = []

    def full(path: Path) -> Any:
        names.append(path.parent.name)
        if len(names) == 1:
            path.mkdir(parents=True)
            (path / "of others").touch()
        return real(path)

    monkeypatch.setattr(duet, "appearing_whole", full)
    run_pairs(dataclasses.replace(DUET, retries=0), tmp_path / "out", noting(said))
    assert any("storage" in line for line in said)
    assert there(tmp_path / "out") == 4
    assert [path.name for path in (tmp_path / "out").rglob("of others")] == ["of others"]
