"""What a cluster's pod writes, line by line: of kubelet's file, or through the API where there is none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ztprobe.attach.lines import Lines
from ztprobe.errors import UsageError, ZtprobeError
from ztprobe.kubernetes.pod_log import PodLog, ReadLog

__all__ = ("PodLines", "followed", "pod_lines")


def _nothing() -> None:
    """A file has at once what is written to it."""


@dataclass(frozen=True, kw_only=True)
class PodLines:
    """Lines from now on."""

    lines: Lines
    complete: Callable[[], None] = _nothing  # have all that was written by now among them


@contextlib.contextmanager
def followed(read: ReadLog, kept: Path) -> Iterator[PodLines]:
    """Through the API, by way of a file.

    :param kept: the file.
    :raises PreflightError: the API does not give the log.
    """
    for _ in read(None, False):
        break  # whether it may be asked is known now
    kept.touch()
    with contextlib.closing(PodLog(read, kept)) as log:
        log.look()
        with Lines(str(kept)) as lines:
            yield PodLines(lines=lines, complete=log.complete)


@contextlib.contextmanager
def pod_lines(
    file: Path | None, read: ReadLog | None, kept: Path, note: Callable[[str], None], *, must: bool
) -> Iterator[PodLines | None]:
    """Of the server's pod; None: they are not to be had.

    :param file: kubelet's; None: there is none here.
    :param read: asks the API; None: there is none.
    :param kept: where a log that comes through the API is kept.
    :param note: is told why they are not to be had.
    :param must: they have to be.
    :raises UsageError: they are not.
    """
    if file is not None and os.access(file, os.R_OK):
        with Lines(str(file)) as lines:
            yield PodLines(lines=lines)
        return
    why = "the log of the server's pod is not on this machine (/var/log/pods)"
    with contextlib.ExitStack() as stack:
        found = None
        try:
            found = stack.enter_context(followed(read, kept)) if read is not None else None
        except ZtprobeError as error:
            why += f", and {error}"
        if found is None and must:
            raise UsageError(f"--events-from pod: {why}")
        note(
            f"{why}: rounds are told from the traffic"
            if found is None
            else f"{why}, and read through the API"
        )
        yield found
