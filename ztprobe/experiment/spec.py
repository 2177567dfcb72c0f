"""What a run is made of, as a value: equal specs ask for equal runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ztprobe.experiment.level_switch import LevelSwitch
from ztprobe.experiment.names import Experiment
from ztprobe.experiment.request import STALL_AFTER_S, TraceRequest
from ztprobe.paths import MANIFESTS_DIR
from ztprobe.profile.model import Profile
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.interface import Runtime, WorkloadOptions

__all__ = ("Interference", "OwnCores", "RunSpec", "spec_of")


@dataclass(frozen=True, kw_only=True)
class OwnCores:
    """CPUs that a run has for itself while another run is made on others of the same machine."""

    cpus: tuple[int, ...]
    of: int  # CPUs of the machine
    beside: str  # the other run's experiment


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of one experiment."""

    experiment: Experiment
    profile: Profile  # the experiment's, unless something else is asked for
    options: WorkloadOptions
    offloads: bool  # segmentation offloads of the pods' interfaces stay on
    congestion_control: str = "cubic"  # of the pods' connections
    place: ClusterPlace | None = None  # on which cluster; None: on this machine
    probes: bool = True  # False: nothing is seen of it, so that somebody else may look
    limit_s: float | None = None  # how long the rounds may take; None: as long as they take
    wait_for_quiet_s: float | None = None  # how long to wait for others to leave the CPUs
    manifests_dir: Path = MANIFESTS_DIR
    # False: manifests are taken as an API server takes them, and what is in force is not tried before the
    # rounds, so that a mistake in them shows there.
    try_controls: bool = True
    stall_after_s: float = STALL_AFTER_S
    level_switch: LevelSwitch | None = None  # while rounds go on
    own_cores: OwnCores | None = None  # whoever makes the run stays on them; None: all are

    @property
    def runtime(self) -> str:
        """local | kubernetes"""
        return "local" if self.place is None else "kubernetes"

    @property
    def sees_turns(self) -> bool:
        """Secure aggregation's exchanges are as short as frames, and only turns tell them apart."""
        return bool(self.options.fl.get("secure_aggregation", "none") != "none")


class Interference(Protocol):
    """Something that acts on a run from outside, such as a known cost put in one place."""

    def prepare(self, runtime: Runtime) -> None:
        """Called once the pods are there, and before profile, security, server and clients are."""
        ...

    def during(self, runtime: Runtime) -> AbstractContextManager[None]:
        """Entered when everything but the clients runs, left after the last round."""
        ...


def spec_of(
    request: TraceRequest,
    experiment: Experiment | None = None,
    *,
    offloads: bool,
    profile: Profile | None = None,
    environment: Mapping[str, str] | None = None,
    limit_s: float | None = None,
    congestion_control: str = "cubic",
    own_cores: OwnCores | None = None,
) -> RunSpec:
    """The spec of one of a request's experiments.

    :param experiment: None: the one that is asked for, not its baseline.
    :param profile: instead of the one that the experiment's name says.
    :param environment: more of it for the workload's containers.
    :param limit_s: how long the rounds may take.
    :param own_cores: to which the caller keeps itself.
    :raises UsageError: there is no profile of that name.
    """
    experiment = experiment or request.experiment
    switch = request.level_switch if experiment is request.experiment else None
    return RunSpec(
        experiment=experiment,
        profile=profile or request.profile_of(experiment),
        options=WorkloadOptions(
            rounds=request.rounds,
            clients=request.clients,
            seed=experiment.seed,
            distribution=experiment.distribution,
            dataset=request.dataset,
            data_dir=request.data_dir,
            reconnect=request.reconnect,
            level=experiment.level,
            fl=request.fl if experiment is request.experiment else request.baseline_fl,
            environment=dict(environment or {}),
            later_level=None if switch is None else switch.level,
        ),
        offloads=offloads,
        congestion_control=congestion_control,
        limit_s=limit_s,
        wait_for_quiet_s=request.wait_for_quiet_s,
        stall_after_s=request.stall_after_s,
        level_switch=switch,
        place=request.place,
        own_cores=own_cores,
    )
