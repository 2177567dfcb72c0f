"""What a run leaves: events as tables, and the parts of run.json that describe what it ran on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztprobe import __version__
from ztprobe.events.tables import RINGS, dtype_of, pairs_table, table_of
from ztprobe.pods.model import Pod
from ztprobe.rundir.batches import BATCHES_DIR, read_parts
from ztprobe.rundir.store import RunDir

if TYPE_CHECKING:
    import pandas as pd

__all__ = ("pod_record", "save_events", "versions")

_VERSIONS = ("grpcio", "torch", "numpy", "pandas", "pyroute2")


def save_events(target: RunDir) -> dict[str, int]:
    """Turn what the agent has written into the run's tables. :returns: rows of each table.

    :raises RunDirError: the disk refuses.
    """
    rows = {}
    for name, table in _tables(target.path / BATCHES_DIR).items():
        target.write_events(name, table)
        rows[name] = len(table)
    shutil.rmtree(target.path / BATCHES_DIR, ignore_errors=True)
    return rows


def _tables(directory: Path) -> dict[str, pd.DataFrame]:
    import numpy as np

    found: dict[str, list[pd.DataFrame]] = {}
    for part in read_parts(directory):
        pods = {int(inode): name for inode, name in part.names["pods"].items()}
        owners = {int(pid): name for pid, name in part.names["processes"].items()}
        for name, struct in RINGS.items():
            table = table_of(struct, part.rows.get(name, np.empty(0, dtype_of(struct))), pods)
            if "tgid" in table:
                table["process"] = [owners.get(tgid, "") for tgid in table["tgid"]]
            found.setdefault(name, []).append(table)
        if (pairs := part.names.get("pairs")) is not None:  # read once, at the end
            counted = {(tuple(source), tuple(to)): times for source, to, times in pairs}
            found["pairs"] = [pairs_table(counted, pods)]
    return {name: _in_order(tables) for name, tables in found.items()}


def _in_order(tables: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    if len(tables) == 1:
        return tables[0]
    whole = pd.concat(tables, ignore_index=True)
    return whole.sort_values("first_ns" if "first_ns" in whole else "ts_ns", kind="stable", ignore_index=True)


def pod_record(pod: Pod) -> dict[str, Any]:
    """A pod as run.json has it."""
    return {
        "name": pod.name,
        "namespace": pod.namespace,
        "labels": dict(pod.labels),
        "address": pod.address,
        "netns_inode": pod.netns_inode,
        "interface": pod.interface,
    }


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    found = {"ztprobe": __version__, "python": platform.python_version()}
    for name in _VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
