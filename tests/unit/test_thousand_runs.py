"""A thousand saved runs are analysed within a minute and 2 GB: as a sweep leaves them, and without reports.

Time is CPU time, which does not depend on what else the machine does: in one process it is the least that a
user waits, and over two CPUs twice that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.recorded_run import RECORDED
from tests.unit.thousand_runs import STUDY, write_study
from ztprobe.paths import REPO_DIR
from ztprobe.rundir.store import dump_json

pytestmark = pytest.mark.long

MOST_S = 60.0
MOST_BYTES = 2 << 30
CPUS = 2
_MEASURED = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "ztprobe", *sys.argv[1:]], stdout=subprocess.DEVNULL)
spent = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, spent.ru_utime + spent.ru_stime, spent.ru_maxrss * 1024)
"""


def measured(*arguments: str | Path) -> tuple[float, int]:
    """CPU seconds of a ztprobe command and of what it starts, and the most bytes that one process held."""
    environment = os.environ | {"PYTHONPATH": str(REPO_DIR)}
    command = [sys.executable, "-c", _MEASURED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stderr == ""
    status, cpu_s, peak_bytes = done.stdout.split()
    assert status == "0"
    print(f"ztprobe {arguments[0]}: {float(cpu_s):.1f} s of CPU time, {int(peak_bytes) >> 20} MiB")
    return float(cpu_s), int(peak_bytes)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("thousand") / "study"
    assert write_study(path) == 1000
    return path


def test_a_study_of_a_thousand_runs_is_reported(study: Path) -> None:
    cpu_s, peak_bytes = measured("report", study)
    assert cpu_s <= MOST_S and peak_bytes <= MOST_BYTES
    report = json.loads((study / "study-report.json").read_text())
    assert sum(group["complete"] for group in report["groups"]) == 1000
    assert sum(group["rounds"] for group in report["groups"]) == 1000 * 19
    assert all(group["p99_ci95"] for group in report["groups"])  # of 2,375 rounds each
    assert (study / "study.html").stat().st_size < 1 << 20


def test_a_thousand_runs_are_compared(study: Path, tmp_path: Path) -> None:
    """Five hundred against five hundred: a directory of each, as links."""
    for side in ("before", "after"):
        (tmp_path / side).mkdir()
    of_one = sorted(study.glob("runs/net2-sec3*/r*"))
    assert len(of_one) == 125
    for number in range(1000):
        side = tmp_path / ("before" if number < 500 else "after")
        (side / f"r{number:04d}").symlink_to(of_one[number % 125])
    cpu_s, peak_bytes = measured("compare", tmp_path / "before", tmp_path / "after")
    assert cpu_s <= MOST_S and peak_bytes <= MOST_BYTES


def test_a_thousand_runs_without_reports_are_analysed(tmp_path: Path) -> None:
    """Recorded ones of 8 rounds and 2 clients, from their events, on every CPU."""
    out = tmp_path / "study"
    for one in STUDY.runs():
        source = RECORDED if one.cell.experiment.profile == "net2" else RECORDED / "baseline"
        target = out / one.directory
        target.mkdir(parents=True)
        for name in ("run.json", "rounds.jsonl", "clients.jsonl", "events"):
            (target / name).symlink_to(source / name)
    (out / "study.json").write_bytes(dump_json(STUDY.as_dict()))
    cpu_s, peak_bytes = measured("report", out)
    assert cpu_s / CPUS <= MOST_S
    assert peak_bytes * (CPUS + 1) <= MOST_BYTES  # of each worker and of what waits for them
