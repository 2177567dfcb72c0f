"""ztprobe: where each millisecond of a federated-learning round goes, measured from the kernel.

``ztprobe.load(path)`` gives a saved run's results as DataFrames.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without typing's 3 ms
if TYPE_CHECKING:
    from pathlib import Path

    from analysis.results.frames import LoadedRun

__all__ = ("load",)

__version__ = "0.1.0"


def load(path: str | Path) -> LoadedRun:
    """A saved run: ``load(path).components`` and its other tables.

    :raises ztprobe.errors.RunDirError: no run stands there, or it cannot be analysed.
    """
    from analysis.results import frames  # pandas takes its time, and the commands need none

    return frames.load(path)
