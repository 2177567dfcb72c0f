"""A study of a thousand saved runs, as a sweep leaves them: 20 rounds and 5 clients each, no two alike.

As a program it writes such a study: ``python -m tests.unit.thousand_runs DIR``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.report.report import build_report
from tests.unit.recorded_run import RECORDED
from tests.unit.synthetic_run import NET0_SEC0, NET2_SEC3, make_ledger, make_run
from ztprobe.experiment.names import Experiment
from ztprobe.rundir.store import create_run_dir, dump_json
from ztprobe.study.plan import Cell, Study

ROUNDS, CLIENTS = 20, 5
STUDY = Study(
    name="thousand",
    rounds=ROUNDS,
    cells=tuple(
        Cell(experiment=Experiment(profile=profile, level=level, seed=seed))
        for profile in ("net0", "net2")
        for level in range(4)
        for seed in range(5)
    ),
    repetitions=25,
)
# By level, what NetworkPolicy and mutual TLS add to a round, in milliseconds.
_DEARER_MS: tuple[Mapping[str, float], ...] = (
    {}, {"transmission": 4.0}, {"proxy": 25.0}, {"transmission": 4.0, "proxy": 25.0},
)  # fmt: skip


def write_study(out: Path, repetitions: int = STUDY.repetitions, study: Study = STUDY) -> int:
    """Write it, or a smaller one, or another of as many rounds and clients. :returns: the number of runs."""
    out.mkdir(parents=True)
    study = dataclasses.replace(study, repetitions=repetitions)
    (out / "study.json").write_bytes(dump_json(study.as_dict()))
    segments = _segments()
    planned = list(study.runs())
    for number, one in enumerate(planned):
        experiment = one.cell.experiment
        parts_ms = dict(NET0_SEC0 if experiment.profile == "net0" else NET2_SEC3)
        for name, more_ms in _DEARER_MS[experiment.level].items():
            parts_ms[name] = parts_ms.get(name, 0.0) + more_ms
        ledger = make_ledger(parts_ms, rounds=ROUNDS, clients=CLIENTS, seed=number)
        run = make_run(f"{experiment.profile}-sec{experiment.level}", ledger)
        report = build_report(run, ledger, None)
        report["contention"]["run"]["cpu_model"] = "A CPU of a test"
        for one_round in report["rounds"]:
            for client in one_round["clients"]:
                client["segments"] = segments
        run_dir = create_run_dir(_with_parents(out / one.directory))
        run_dir.append_jsonl("rounds.jsonl", *run.rounds)
        run_dir.append_jsonl("clients.jsonl")
        run_dir.finish(run.meta)
        run_dir.write_json("report.json", report)
        run_dir.write_json("reset.json", {"commit": "0123456789ab"})
    return len(planned)


def _with_parents(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _segments() -> list[dict[str, Any]]:
    """A client's way through a round as it was recorded, of which a report's bulk consists."""
    report = json.loads((RECORDED / "report.json").read_text())
    return list(report["rounds"][1]["clients"][0]["segments"])


if __name__ == "__main__":
    print(f"{write_study(Path(sys.argv[1]))} runs")
