"""The run directory of a trace appears whole or not at all, and so does what the machine was left with."""

from __future__ import annotations

from pathlib import Path

from ztprobe.attach.request import AttachRequest
from ztprobe.attach.run import attach
from ztprobe.errors import ZtprobeError
from ztprobe.experiment.failure import why_failed
from ztprobe.progress import Progress
from ztprobe.rundir import temporary
from ztprobe.rundir.store import create_run_dir
from ztprobe.runtime.deployments import appearing_whole

__all__ = ("attach_whole",)


def attach_whole(request: AttachRequest, progress: Progress) -> Path:
    """Trace what was asked for and return the run directory, ready to be analysed.

    :raises ZtprobeError: see `ztprobe.attach.run.attach`. If it failed while it was watched, the run
        directory is there, and ``failed`` in its run.json; otherwise logs that the message names are kept.
    """
    with appearing_whole(request.out) as partial:
        try:
            attach(request, create_run_dir(partial, shown=request.out), progress)
            return request.out
        except ZtprobeError as error:
            message = str(error)
            if not (partial / "run.json").exists():
                if str(partial) in message:
                    message = message.replace(str(partial), str(temporary.keep_logs(partial)))
                raise type(error)(message) from error
            failure = error
    message = str(failure).replace(str(partial), str(request.out))
    raise type(failure)(f"{message}; {why_failed(request.out)}") from failure
