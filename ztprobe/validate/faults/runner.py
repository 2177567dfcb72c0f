"""One fault: the run with it, what was observed of it, and what a diagnosis says."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ztprobe.errors import EnforcementError, RunDirError, WorkloadError
from ztprobe.experiment.names import parse_experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.experiment.run import run
from ztprobe.experiment.spec import RunSpec, spec_of
from ztprobe.profile.model import load_profile, profile_names
from ztprobe.progress import QuietProgress
from ztprobe.rundir import files
from ztprobe.rundir.store import create_run_dir
from ztprobe.runtime.interface import Runtime
from ztprobe.validate.faults.objects import write_overlay
from ztprobe.validate.faults.observations import observed_at_end, said_in_logs
from ztprobe.validate.faults.plan import PlannedFault
from ztprobe.validate.inject.scene import Follower, Scene

__all__ = ("Diagnose", "FaultRun", "NamedCause", "run_fault", "spec_of_fault")

# For a run that its own deadlines do not end: so long beyond one round's deadline.
_LIMIT_S = 60.0
_PORT = 50051  # the Service's


class NamedCause(NamedTuple):
    """One cause of a diagnosis."""

    id: str
    confidence: float


class Diagnose(Protocol):
    """What looks at a saved run, and at nothing else."""

    def __call__(self, run_dir: Path) -> Sequence[NamedCause]:
        """The causes, the likeliest first. :raises ZtprobeError: the run cannot be read."""
        ...


@dataclass(kw_only=True)
class FaultRun:
    """What came of one planned fault."""

    name: str
    cause: str
    what: str
    experiment: str
    mode: str
    ended: str = ""  # the error that ended it; empty: it went through
    took_s: float = 0.0
    is_there: bool = False  # the fault has shown, by others' eyes
    problems: list[str] = field(default_factory=list)
    observed: list[str] = field(default_factory=list)


def run_fault(planned: PlannedFault, out: Path, manifests: Path) -> FaultRun:
    """Make the run with the fault in it.

    :param out: the run directory to make; what there is of it stays there when the run fails.
    :param manifests: the directory to make for the edited objects.
    :raises ZtprobeError: the run could not be tried at all.
    """
    variant = planned.variant
    found = FaultRun(
        name=planned.name,
        cause=planned.fault.cause,
        what=variant.what,
        experiment=planned.experiment,
        mode=planned.mode,
    )
    write_overlay(variant.level, variant.edit, manifests, edges=bool(variant.edges))
    breaking = _Breaking(planned, out)
    started_s = time.monotonic()
    try:
        run(
            spec_of_fault(planned, out, manifests),
            create_run_dir(out),
            QuietProgress(),
            interference=breaking,
        )
    except (WorkloadError, EnforcementError, RunDirError) as error:
        found.ended = str(error)
    finally:
        breaking.close()
    found.took_s = time.monotonic() - started_s
    found.problems = breaking.problems
    said = [f"ended: {found.ended}"] if found.ended else ["went through"]
    found.observed = [*said, *breaking.observed, *said_in_logs(out / "logs")]
    found.is_there = any(re.search(variant.shows, line) for line in found.observed)
    return found


def spec_of_fault(planned: PlannedFault, out: Path, manifests: Path) -> RunSpec:
    """What its run is asked to do."""
    variant = planned.variant
    experiment = parse_experiment(planned.experiment, profile_names())
    base = load_profile(experiment.profile)
    request = TraceRequest(
        experiment=experiment,
        baseline=None,
        rounds=variant.rounds,
        clients=variant.clients,
        dataset="digits",
        data_dir=None,
        out=out,
        reconnect=planned.mode == "reconnecting",
        fl={"client": "synthetic", "synthetic_compute_ms": variant.compute_ms}
        | ({"edges": variant.edges} if variant.edges else {}),
    )
    environment = {
        "FL_ROUND_DEADLINE_S": f"{variant.deadline_s:g}",
        "FL_MODEL": "cnn" if variant.bulk else "narrow",
        **variant.environment,
    }
    spec = spec_of(
        request,
        offloads=variant.offloads,
        profile=base if variant.profile is None else variant.profile(base),
        environment=environment,
        limit_s=_LIMIT_S + variant.deadline_s,
    )
    return dataclasses.replace(spec, manifests_dir=manifests, try_controls=False)


class _Breaking:
    """An `Interference` that brings the fault about and writes down what others see of it."""

    def __init__(self, planned: PlannedFault, out: Path) -> None:
        self._variant = planned.variant
        self.state_dir = files.unguessable(out, "state")
        self._prepared = contextlib.ExitStack()
        self.observed: list[str] = []
        self.problems: list[str] = []

    def close(self) -> None:
        """Take back what did not go with the pods."""
        try:
            self._prepared.close()
        finally:
            files.remove_tree(self.state_dir)

    def prepare(self, runtime: Runtime) -> None:
        """See `Interference`."""
        local: Any = runtime
        files.make_directory(self.state_dir, 0o700)
        for one in self._variant.prepare:
            undo = one(local, self.state_dir)
            if undo is not None:
                self._prepared.callback(undo)

    @contextlib.contextmanager
    def during(self, runtime: Runtime) -> Iterator[None]:
        pods = (runtime.server, *runtime.edges, *runtime.clients)
        logs = {pod.name: runtime.source.log(pod, runtime.applications[pod.name]) for pod in pods}
        follower = Follower(logs)
        scene = Scene(runtime=runtime, server_port=_PORT, follower=follower, state_dir=self.state_dir)
        try:
            with follower, contextlib.ExitStack() as stack:
                for act in self._variant.acts:
                    stack.enter_context(act(scene))
                try:
                    yield
                finally:
                    self.observed = observed_at_end(runtime)
        finally:
            self.problems = scene.problems
            self.observed += [f"done: {note.kind}, in round {note.round}" for note in scene.notes]
