"""Makes one run of a study, on this machine or on a cluster, and keeps with it on what it was made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from analysis.results.study_files import CONDITIONS_FILE
from ztprobe.experiment.request import TraceRequest
from ztprobe.experiment.run import Job
from ztprobe.experiment.spec import Interference, OwnCores, spec_of
from ztprobe.progress import Progress
from ztprobe.rundir.store import RunDir, create_run_dir
from ztprobe.runtime.deployments import clean_leftovers
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.study.cluster_runs import ClusterRuns
from ztprobe.study.plan import Cell, PlannedRun, Study
from ztprobe.study.reset import commit, machine_state

__all__ = ("RunMaker", "options_of", "run_name")

_LIMIT_S = (180, 60)  # a run may take this long, and this long a round


@dataclass(frozen=True)
class RunMaker:
    """See the module."""

    study: Study
    planned: PlannedRun
    target: Path
    progress: Progress
    offloads: bool
    on_cluster: ClusterRuns | None
    own_cores: OwnCores | None = None  # to which this process keeps itself
    interference: Interference | None = None

    @property
    def name(self) -> str:
        """See `run_name`."""
        return run_name(self.planned)

    def measure(self, partial: Path) -> None:
        """Everything from pods to run.json, into a directory that becomes the target's."""
        for line in clean_leftovers():
            self.progress.note(f"left by an interrupted run: {line}")
        cluster = self.on_cluster
        if cluster is not None:
            cluster.remove_left(self.progress)
        is_here = cluster is None or cluster.place.agents is None
        before = machine_state() if is_here else {"commit": commit()}
        directory = create_run_dir(partial, shown=self.target)
        job = self._job(directory)
        if cluster is None:
            job.run()
        else:
            cluster.begins(job.run_id)
            job.run()
            before["node"] = job.meta["facts"]["node"]
        directory.write_json(CONDITIONS_FILE, before)

    def _job(self, directory: RunDir) -> Job:
        study, cell = self.study, self.planned.cell
        request = _request(study, cell, self.target)
        if self.on_cluster is not None:
            request = replace(request, place=self.on_cluster.place)
        base_s, round_s = _LIMIT_S
        spec = spec_of(
            request,
            offloads=self.offloads,
            limit_s=base_s + round_s * study.rounds,
            congestion_control=cell.congestion_control,
            own_cores=self.own_cores,
        )
        return Job(spec, directory, self.progress, interference=self.interference)


def run_name(planned: PlannedRun) -> str:
    """For people, and of its attempts."""
    return f"{planned.cell.name}-r{planned.repetition:02d}"


def options_of(study: Study, cell: Cell) -> WorkloadOptions:
    """What a cell's runs ask of the workload."""
    return spec_of(_request(study, cell, Path()), offloads=True).options


def _request(study: Study, cell: Cell, out: Path) -> TraceRequest:
    return TraceRequest(
        experiment=cell.experiment,
        baseline=None,
        rounds=study.rounds,
        clients=cell.clients,
        dataset=study.dataset,
        data_dir=study.data_dir,
        out=out,
        reconnect=cell.reconnect,
        level_switch=cell.level_switch,
        fl=dict(cell.fl),
    )
