"""What one `ztprobe trace` is asked to do, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ztprobe.documents.idx import check_idx
from ztprobe.documents.problem import DocumentError
from ztprobe.errors import UsageError
from ztprobe.experiment.level_switch import LevelSwitch
from ztprobe.experiment.names import Experiment, parse_baseline, parse_experiment
from ztprobe.profile.model import Profile, load_profile
from ztprobe.runtime.cluster.place import ClusterPlace

__all__ = (
    "DATASETS",
    "STALL_AFTER_S",
    "TraceRequest",
    "check_data_dir",
    "choose_experiments",
    "with_profile",
)

# Data set -> the folder that torchvision keeps its files in; None: embedded, no files.
DATASETS: dict[str, str | None] = {"digits": None, "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}

STALL_AFTER_S = 10.0

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True, kw_only=True)
class TraceRequest:
    """One traced run, with its baseline if there is one; every field has been checked."""

    experiment: Experiment
    baseline: Experiment | None  # run first, into out/baseline
    rounds: int
    clients: int
    dataset: str  # a key of DATASETS
    data_dir: Path | None  # absolute; None with digits
    out: Path  # absolute; does not exist yet or is empty
    reconnect: bool  # a new connection per client and round
    profile: Profile | None = None  # of a file: the experiment's, not its baseline's
    # the workload's own options that were given (``--fl-...``), checked by `ztprobe.cli.fl_options`
    fl: Mapping[str, Any] = field(default_factory=dict)
    baseline_fl: Mapping[str, Any] = field(default_factory=dict)  # likewise, of the baseline
    wait_for_quiet_s: float | None = None  # how long to wait for others to leave the CPUs; None: not at all
    stall_after_s: float = STALL_AFTER_S  # without progress a round has a stall
    level_switch: LevelSwitch | None = None  # of the experiment, not of its baseline
    place: ClusterPlace | None = None  # on which cluster; None: on this machine

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """In the order in which they are run."""
        return (self.experiment,) if self.baseline is None else (self.baseline, self.experiment)

    @property
    def demands(self) -> tuple[Experiment, ...]:
        """All that the machine must be able to run: the experiments, and what one becomes meanwhile."""
        switch = self.level_switch
        later = () if switch is None else (replace(self.experiment, level=switch.level),)
        return (*self.experiments, *later)

    def profile_of(self, experiment: Experiment) -> Profile:
        """The network profile of one of the experiments. :raises UsageError: there is none of that name."""
        if self.profile is not None and experiment == self.experiment:
            return self.profile
        return load_profile(experiment.profile)


def with_profile(experiment: Experiment, profile: Profile, profiles: Sequence[str]) -> Experiment:
    """The experiment under another profile, by whose name it is called.

    :raises UsageError: a profile that comes with ztprobe has that name.
    """
    if profile.name in profiles:
        raise UsageError(f"--profile: its name {profile.name} is a shipped profile's: give it another")
    return replace(experiment, profile=profile.name)


def choose_experiments(
    name: str,
    profiles: Sequence[str],
    *,
    profile: Profile | None = None,
    baseline_name: str | None,
    with_baseline: bool,
    seed: int | None,
) -> tuple[Experiment, Experiment | None]:
    """The experiment and its baseline; ``seed`` applies to both.

    :param profile: of a file, in place of the one that the experiment's name says.
    :param baseline_name: None takes the experiment's own default.
    :raises UsageError: a name is unknown or contradicts ``seed``, or a baseline is asked for
        and refused at once.
    """
    if baseline_name is not None and not with_baseline:
        raise UsageError(f"--baseline {baseline_name} and --no-baseline contradict each other: give one")
    experiment = parse_experiment(name, profiles, seed=seed)
    if profile is not None:
        experiment = with_profile(experiment, profile, profiles)
    if not with_baseline:
        return experiment, None
    if baseline_name is None:
        return experiment, experiment.default_baseline()
    return experiment, parse_baseline(baseline_name, experiment, profiles, seed=seed)


def check_data_dir(dataset: str, data_dir: Path | None) -> Path | None:
    """The absolute data directory, after making sure that it has the files of ``dataset``, and whole.

    :raises UsageError: it is missing, or superfluous, or lacks files (the ones expected are listed), or
        one of them is damaged.
    """
    folder = DATASETS[dataset]
    if folder is None:
        if data_dir is not None:
            raise UsageError(f"--data-dir {data_dir}: {dataset} is built in; --dataset mnist reads files")
        return None
    if data_dir is None:
        raise UsageError(
            f"--dataset {dataset} needs --data-dir, a directory with {', '.join(_IDX_FILES)}, plain or .gz"
        )
    try:
        str(data_dir).encode()
    except UnicodeEncodeError as error:  # run.json could not say it
        raise UsageError(f"--data-dir {str(data_dir)!a}: its name is no UTF-8 text; rename it") from error
    places = (data_dir, data_dir / folder / "raw")
    found = {name: _find(places, name) for name in _IDX_FILES}
    missing = [name for name, file in found.items() if file is None]
    if missing:
        raise UsageError(
            f"--data-dir {data_dir}: {len(missing)} of the files of {dataset} are neither there nor in "
            f"{folder}/raw: {', '.join(missing)} (plain or .gz)"
        )
    for file in filter(None, found.values()):
        try:
            check_idx(file)
        except DocumentError as error:
            raise UsageError(f"--data-dir {data_dir}: {error.at(file)}") from error
    return data_dir.resolve()


def _find(places: Sequence[Path], name: str) -> Path | None:
    # In the workload's own order (fl.data).
    files = (place / file for place in places for file in (name, f"{name}.gz"))
    return next((file for file in files if file.is_file()), None)
