"""``limits``: runs at one value after the other, every one kept, until it is known where they stop working.

A search's directory holds ``limits.json`` (what is searched), ``tries/VALUE-sN`` (a complete run directory,
or a failed one for `ztprobe diagnose`) and, at the end, ``limits-report.json``. What is there is not run
again, so an interrupted search goes on where it was. A run works when all of its rounds end within their
deadline, with every client that is not missing on purpose.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.results.limit_point import point_of
from ztprobe.errors import EnforcementError, UsageError, WorkloadError
from ztprobe.experiment.names import Experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.experiment.run import Job
from ztprobe.experiment.spec import spec_of
from ztprobe.profile.model import Profile, load_profile
from ztprobe.progress import Progress
from ztprobe.rundir.logs import GrowingLog
from ztprobe.rundir.store import create_run_dir, dump_json, write_atomically
from ztprobe.runtime.deployments import appearing_whole, clean_leftovers
from ztprobe.runtime.interface import Runtime
from ztprobe.study.execution import open_plan
from ztprobe.study.threshold import AXES, Axis, Threshold, find_threshold

__all__ = ("LIMITS_FILE", "REPORT_FILE", "Search", "run_search")

LIMITS_FILE = "limits.json"
REPORT_FILE = "limits-report.json"
_NOT_SEEN = "failure.json"
_SETUP_S = 300  # of a run, besides its rounds' deadlines


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, checked."""

    experiment: Experiment
    axis: Axis
    easiest: float
    hardest: float
    precision: float
    rounds: int
    clients: int
    round_deadline_s: float
    confirmations: int  # more runs, with other seeds, on either side of what was found

    def __post_init__(self) -> None:
        """:raises UsageError: values that no search can be made of."""
        least = 2 if self.axis.key is None else 1
        if self.clients < least:
            raise UsageError(f"--clients {self.clients}: --vary {self.axis.name} needs at least {least}")
        if self.easiest == self.hardest:
            raise UsageError(f"--from {self.easiest:g} --to {self.hardest:g}: nothing lies between them")
        if load_profile(self.experiment.profile).schedule is not None and self.axis.key is not None:
            raise UsageError(f"{self.experiment.profile}: changes over time; take a profile that does not")
        for value in (self.easiest, self.hardest):
            most = {"loss": 100.0, "clients-missing": float(self.clients)}.get(self.axis.name)
            if most is not None and value > most:
                raise UsageError(f"{self.axis.name} {value:g}: expected at most {most:g}")
            self.profile(value)

    def profile(self, value: float) -> Profile:
        """The experiment's, with the value in it.

        :raises UsageError: it contradicts what else stands there.
        """
        base = load_profile(self.experiment.profile)
        if self.axis.key is None:
            return base
        changes: dict[str, Any] = {self.axis.key: value, "queue_limit_packets": 0}
        if self.axis.key == "rate_mbit":
            changes["burst_bytes"] = 0
        try:
            return dataclasses.replace(base, name=f"{base.name}-{self.axis.name}-{value:g}", **changes)
        except ValueError as error:
            raise UsageError(
                f"{self.axis.name} {self.axis.words(value)} under {base.name}: {error}"
            ) from error

    def as_dict(self) -> dict[str, Any]:
        """As limits.json has it."""
        return {
            "experiment": self.experiment.name,
            "vary": self.axis.name,
            "unit": self.axis.unit,
            "easiest": self.easiest,
            "hardest": self.hardest,
            "precision": self.precision,
            "rounds": self.rounds,
            "clients": self.clients,
            "round_deadline_s": self.round_deadline_s,
            "confirmations": self.confirmations,
        }

    @classmethod
    def of_axis(cls, name: str, easiest: float | None, hardest: float | None, **more: Any) -> Search:
        """With the axis' own ends where none are given. :raises UsageError: see above."""
        axis = AXES[name]
        last = more["clients"] if axis.key is None else axis.hardest
        ends = (
            axis.easiest if easiest is None else easiest,
            last if hardest is None else hardest,
        )
        return cls(axis=axis, easiest=float(ends[0]), hardest=float(ends[1]), **more)


def run_search(search: Search, out: Path, progress: Progress) -> dict[str, Any]:
    """Run what is missing.

    :returns: what limits-report.json has.
    :raises ZtprobeError: the machine cannot go on (not: a run has failed).
    """
    points: dict[tuple[float, int], dict[str, Any]] = {}

    def works(value: float, seed: int = search.experiment.seed) -> bool:
        point = points[value, seed] = _tried(search, value, seed, out, progress)
        return bool(point["outcome"] == "works")

    with open_plan(out, LIMITS_FILE, dump_json(search.as_dict()), "search"):
        found = find_threshold(search.axis, search.easiest, search.hardest, search.precision, works)
        for value in (one for one in (found.works, found.fails) if one is not None):
            for more in range(1, search.confirmations + 1):
                works(value, search.experiment.seed + more)
        report = _report(search, found, points)
        write_atomically(out / REPORT_FILE, dump_json(report))
    return report


def _report(
    search: Search, found: Threshold, points: dict[tuple[float, int], dict[str, Any]]
) -> dict[str, Any]:
    ordered = sorted(points.items(), reverse=search.easiest > search.hardest)
    return search.as_dict() | {
        "works": found.works,
        "fails": found.fails,
        "tries": [{"value": value, "seed": seed, **point} for (value, seed), point in ordered],
    }


def _tried(search: Search, value: float, seed: int, out: Path, progress: Progress) -> dict[str, Any]:
    """What came of a value; it is run unless it has been."""
    name = f"{value:g}-s{seed}"
    target = out / "tries" / name
    note = out / "tries" / f"{name}.{_NOT_SEEN}"
    words = search.axis.words(value)
    if not (target / "run.json").exists() and not note.exists():
        progress.note(f"{search.axis.name} {words}, seed {seed}")
        for line in clean_leftovers():
            progress.note(f"left by an interrupted run: {line}")
        try:
            _measure(search, value, seed, target, progress)
        except (WorkloadError, EnforcementError) as error:
            if not (target / "run.json").exists():
                is_ours = isinstance(error, EnforcementError)
                failure = {"outcome": "not in force" if is_ours else "fails", "reason": str(error)}
                write_atomically(note, dump_json(failure))
    if note.exists():
        point = json.loads(note.read_text()) | {"run": None, "cause": None, "rounds": []}
    else:
        point = point_of(target) | {"run": f"tries/{name}"}
    progress.note(f"{search.axis.name} {words}, seed {seed}: {point['outcome']}")
    return dict(point)


def _measure(search: Search, value: float, seed: int, target: Path, progress: Progress) -> None:
    experiment = dataclasses.replace(search.experiment, seed=seed)
    profile = search.profile(value)
    request = TraceRequest(
        experiment=experiment,
        baseline=None,
        rounds=search.rounds,
        clients=search.clients,
        dataset="digits",
        data_dir=None,
        out=target,
        reconnect=False,
    )
    spec = spec_of(
        request,
        # All runs of a search see packets of the same size, as those with loss have to.
        offloads=not profile.per_packet and search.axis.key != "loss_pct",
        profile=profile,
        environment={"FL_ROUND_DEADLINE_S": f"{search.round_deadline_s:g}"},
        limit_s=_SETUP_S + search.rounds * search.round_deadline_s,
    )
    missing = int(value) if search.axis.key is None else 0
    failure: WorkloadError | EnforcementError | None = None
    with appearing_whole(target) as partial:
        directory = create_run_dir(partial, shown=target)
        try:
            Job(
                spec,
                directory,
                progress,
                interference=MissingClients(missing, search.rounds) if missing else None,
            ).run()
        except (WorkloadError, EnforcementError) as error:
            if not (partial / "run.json").exists():
                raise
            failure = error  # what was seen of it is kept
    if failure is not None:
        raise failure


class MissingClients:
    """So many of a run's clients stand still from round 1 to the last, as if their machines had gone."""

    def __init__(self, count: int, rounds: int) -> None:
        self._count, self._rounds = count, rounds
        self._stopped: list[int] = []

    def prepare(self, runtime: Runtime) -> None:
        """See `Interference`."""

    @contextlib.contextmanager
    def during(self, runtime: Runtime) -> Iterator[None]:
        """See `Interference`."""
        done = threading.Event()
        thread = threading.Thread(target=self._follow, args=(runtime, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._let_go()

    def _follow(self, runtime: Runtime, done: threading.Event) -> None:
        server = runtime.server
        log = GrowingLog(runtime.source.log(server, runtime.applications[server.name]))
        while not done.wait(0.01):
            for event in log.fresh():
                if event["event"] == "round_start" and event["round"] == 1:
                    self._stop(runtime)
                elif event["event"] == "round_end" and event["round"] == self._rounds:
                    self._let_go()  # to hear that there are no more rounds, and end

    def _stop(self, runtime: Runtime) -> None:
        victims = {pod.name for pod in runtime.clients[: self._count]}
        for pid, (pod, container) in runtime.source.processes(runtime.clients).items():
            if pod in victims and container == runtime.applications[pod]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    self._stopped.append(pid)

    def _let_go(self) -> None:
        while self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._stopped.pop(), signal.SIGCONT)
