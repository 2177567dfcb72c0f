"""Which runs a study has begun on its cluster: written down before, forgotten when nothing of them is there.

What ends the sweep orderly removes its run as it goes. After SIGKILL, or where the cluster did not answer at
the end, its pods go on, on the very node that the next run is to have for itself. So before each run whatever
the study began earlier is removed. The names are in the study's directory, a file each: ``on-cluster/RUN``.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from analysis.report.wording import plural
from ztprobe.errors import RunDirError
from ztprobe.kubernetes.api import Api
from ztprobe.kubernetes.changes import Changes, changing
from ztprobe.progress import Progress
from ztprobe.rundir.store import write_atomically
from ztprobe.runtime.cluster.place import ClusterPlace
from ztprobe.runtime.cluster.rewriting import RUN_LABEL

__all__ = ("ClusterRuns",)

_ROOM = "on-cluster"
_NAME = re.compile("[0-9a-f]{6}")
_GRACE_S, _GONE_S, _POLL_S = 5, 60.0, 0.5


class ClusterRuns:
    """See the module.

    :param study: its directory.
    """

    def __init__(self, study: Path, place: ClusterPlace) -> None:
        self._room, self.place = study / _ROOM, place

    def begins(self, run: str) -> None:
        """This run is about to be made. :raises RunDirError: it cannot be written down."""
        write_atomically(self._room / run, b"")

    def remove_left(self, progress: Progress) -> None:
        """Remove whatever is there of earlier runs, and wait for their pods' end.

        :param progress: is told what was there.
        :raises PreflightError: the cluster does not answer, or refuses.
        """
        left = self.left()
        if not left:
            return
        api = self.place.api()
        with changing(api) as changes:
            for run in left:
                if pods := self._remove(api, changes, run):
                    progress.note(f"run {run} was still on the cluster and is removed: {plural(pods, 'pod')}")
                (self._room / run).unlink(missing_ok=True)

    def left(self) -> list[str]:
        """Names of those that may still be there. :raises RunDirError: the directory cannot be read."""
        try:
            names = sorted(file.name for file in self._room.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunDirError(f"{self._room}: cannot be read: {error.strerror}") from error
        return [name for name in names if _NAME.fullmatch(name)]

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
