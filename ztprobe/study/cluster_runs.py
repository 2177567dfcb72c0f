"""Which runs a study has begun on its cluster: written down before, forgotten when nothing of them is there.

What ends the sweep orderly removes its run as it goes. After SIGKILL, or where the cluster did not answer at
the end, its pods go on, on the very node that the next run is to have for itself. So before each run whatever
the study began earlier on its node is removed. The names are in the study's directory, a file each that holds
the node's: ``on-cluster/RUN``. Whoever makes a run holds a lock on its file, so that nobody takes for left
what is being made on another node meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

from analysis.report.wording import plural
from ztprobe.errors import RunDirError
from ztprobe.kubernetes.api import Api
from ztprobe.kubernetes.changes import Changes, changing
from ztprobe.progress import Progress
from ztprobe.rundir import files
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.cluster.rewriting import RUN_LABEL

__all__ = ("ClusterRuns",)

_ROOM = "on-cluster"
_NAME = re.compile("[0-9a-f]{6}")
_GRACE_S, _GONE_S, _POLL_S = 5, 60.0, 0.5
_LONGEST_NODE = 253  # https://kubernetes.io/docs/concepts/overview/working-with-objects/names/


class ClusterRuns:
    """See the module.

    :param study: its directory.
    :param place: on its node alone; without one: on all.
    """

    def __init__(self, study: Path, place: ClusterPlace) -> None:
        self._room, self.place = study / _ROOM, place
        self._held: dict[str, int] = {}  # this process's own, until their end

    def begins(self, run: str) -> None:
        """This run is about to be made, by this process. :raises RunDirError: it cannot be written down."""
        hidden = files.unguessable(self._room / run, "new").name
        try:
            with files.opened_directory(self._room, make=0o777) as room:
                held = files.open_lock(hidden, room)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.write(held, (self.place.node or "").encode())
                    os.rename(hidden, run, src_dir_fd=room, dst_dir_fd=room)
                except BaseException:
                    os.close(held)
                    with contextlib.suppress(OSError):
                        os.unlink(hidden, dir_fd=room)
                    raise
        except OSError as error:
            raise RunDirError(f"{self._room / run}: cannot be written: {error.strerror}") from error
        self._held[run] = held

    def remove_left(self, progress: Progress, patience_s: float = 0.0) -> None:
        """Remove whatever is there of earlier runs, and wait for their pods' end.

        :param progress: is told what was there.
        :param patience_s: how long to wait for other processes that are still making one, or removing it.
        :raises PreflightError: the cluster does not answer, or refuses.
        """
        left = {run: held for run in self.left() if (held := self._taken(run, patience_s)) is not None}
        if not left:
            return
        try:
            api = self.place.api()
            with changing(api) as changes:
                for run in left:
                    if pods := self._remove(api, changes, run):
                        progress.note(
                            f"run {run} was still on the cluster and is removed: {plural(pods, 'pod')}"
                        )
                    (self._room / run).unlink(missing_ok=True)
        finally:
            for held in left.values():
                os.close(held)

    def left(self) -> list[str]:
        """Names of those that may still be there, on this node. :raises RunDirError: they cannot be read."""
        try:
            names = sorted(file.name for file in self._room.iterdir() if _NAME.fullmatch(file.name))
            return [name for name in names if self._is_of_this_node(name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunDirError(f"{self._room}: cannot be read: {error.strerror}") from error

    def _is_of_this_node(self, run: str) -> bool:
        if self.place.node is None:
            return True
        with contextlib.suppress(FileNotFoundError), (self._room / run).open("rb") as file:
            return file.read(_LONGEST_NODE).decode(errors="replace") in ("", self.place.node)
        return False

    def _taken(self, run: str, patience_s: float) -> int | None:
        """The lock on its file; None: another process is making it, or has removed it."""
        if run in self._held:
            return self._held.pop(run)
        until_s = time.monotonic() + patience_s
        try:
            with files.opened_directory(self._room) as room:
                held = os.open(run, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=room)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunDirError(f"{self._room / run}: cannot be read: {error.strerror}") from error
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return held
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    os.close(held)
                    return None
                time.sleep(_POLL_S)

    def _remove(self, api: Api, changes: Changes, run: str) -> int:
        """:returns: how many pods there were; a namespace may still be ending long after its last."""
        selector, namespace = f"{RUN_LABEL}={run}", self.place.namespace or f"fl-{run}"
        pods = len(api.objects("pods", namespace, selector))
        changes.end_pods(selector, namespace, _GRACE_S)
        until_s = time.monotonic() + _GONE_S
        while api.objects("pods", namespace, selector) and time.monotonic() < until_s:
            time.sleep(_POLL_S)
        changes.remove(selector, self.place.namespace)
        return pods
