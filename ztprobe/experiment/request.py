"""What one `ztprobe trace` is asked to do, checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ztprobe.errors import UsageError
from ztprobe.experiment.names import Experiment, parse_baseline, parse_experiment

__all__ = ("DATASETS", "TraceRequest", "check_data_dir", "choose_experiments")

# Data set -> the folder that torchvision keeps its files in; None: embedded, no files.
DATASETS: dict[str, str | None] = {"digits": None, "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}

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
    wait_for_quiet_s: float | None = None  # how long to wait for others to leave the CPUs; None: not at all

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """In the order in which they are run."""
        return (self.experiment,) if self.baseline is None else (self.baseline, self.experiment)


def choose_experiments(
    name: str,
    profiles: Sequence[str],
    *,
    baseline_name: str | None,
    with_baseline: bool,
    seed: int | None,
) -> tuple[Experiment, Experiment | None]:
    """The experiment and its baseline; ``seed`` applies to both.

    :param baseline_name: None takes the experiment's own default.
    :raises UsageError: a name is unknown or contradicts ``seed``, or a baseline is asked for
        and refused at once.
    """
    if baseline_name is not None and not with_baseline:
        raise UsageError(f"--baseline {baseline_name} and --no-baseline contradict each other: give one")
    experiment = parse_experiment(name, profiles, seed=seed)
    if not with_baseline:
        return experiment, None
    if baseline_name is None:
        return experiment, experiment.default_baseline()
    return experiment, parse_baseline(baseline_name, experiment, profiles, seed=seed)


def check_data_dir(dataset: str, data_dir: Path | None) -> Path | None:
    """The absolute data directory, after making sure that it has the files of ``dataset``.

    :raises UsageError: it is missing, or superfluous, or lacks files (the ones expected are listed).
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
    places = (data_dir, data_dir / folder / "raw")
    missing = [name for name in _IDX_FILES if not any(_has(place, name) for place in places)]
    if missing:
        raise UsageError(
            f"--data-dir {data_dir}: {len(missing)} of the files of {dataset} are neither there nor in "
            f"{folder}/raw: {', '.join(missing)} (plain or .gz)"
        )
    return data_dir.resolve()


def _has(place: Path, name: str) -> bool:
    return (place / name).is_file() or (place / f"{name}.gz").is_file()
