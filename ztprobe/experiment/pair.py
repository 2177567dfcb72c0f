"""A traced experiment and its baseline: two runs of one call, side by side in one run directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ztprobe.errors import ZtprobeError
from ztprobe.experiment.failure import why_failed
from ztprobe.experiment.request import TraceRequest
from ztprobe.experiment.run import Job
from ztprobe.experiment.spec import spec_of
from ztprobe.progress import Progress
from ztprobe.rundir import files, temporary
from ztprobe.rundir.store import BASELINE_DIR, create_run_dir
from ztprobe.runtime.deployments import appearing_whole, clean_leftovers

__all__ = ("run_pair",)


def run_pair(request: TraceRequest, progress: Progress) -> Path:
    """Run what was asked for, the baseline first, and return the run directory, ready to be analysed.

    :raises ZtprobeError: something could not be set up, was not in force, or failed on the way. If it
        failed while it was watched, the run directory is there, and ``failed`` in its run.json.
    """
    for line in clean_leftovers():
        progress.note(f"left by an interrupted run: {line}")
    with appearing_whole(request.out) as partial:
        try:
            _run_both(request, partial, progress)
            return request.out
        except ZtprobeError as error:
            if not _keeps_failed(partial):
                error.args = (_with_kept_logs(str(error), partial),)
                raise
            failure = error
    message = str(failure).replace(str(partial), str(request.out))
    failure.args = (f"{message}; {why_failed(request.out)}",)  # its class may be made of something else
    raise failure


def _run_both(request: TraceRequest, directory: Path, progress: Progress) -> None:
    outcome = create_run_dir(directory, shown=request.out)
    # All runs of a call see packets of the same size, or the offloads would pass for the profile's cost.
    per_packet = any(request.profile_of(e).per_packet for e in request.experiments)
    jobs = []  # all of them first: what the second cannot do should not show after the first has run
    for experiment in request.experiments:
        is_baseline = experiment is not request.experiment
        target = create_run_dir(directory / BASELINE_DIR) if is_baseline else outcome
        jobs.append(Job(spec_of(request, experiment, offloads=not per_packet), target, progress))
    for job in jobs:
        progress.note(f"{job.spec.experiment.name}{'' if job.target is outcome else ' (baseline)'}")
        job.run()


def _keeps_failed(partial: Path) -> bool:
    """Whether a failed run is there to be kept; one of the baseline takes the place of the whole."""
    if (partial / "run.json").exists():
        return True
    baseline = partial / BASELINE_DIR
    if not (baseline / "run.json").exists() or "failed" not in json.loads(
        (baseline / "run.json").read_text()
    ):
        return False
    for room in ("events", "logs"):
        files.remove_tree(partial / room)
    for entry in list(baseline.iterdir()):
        os.rename(entry, partial / entry.name)
    baseline.rmdir()
    return True


def _with_kept_logs(message: str, partial: Path) -> str:
    # A log that the message names would be gone with everything else that is unfinished.
    if str(partial) not in message:
        return message
    return message.replace(str(partial), str(temporary.keep_logs(partial)))
