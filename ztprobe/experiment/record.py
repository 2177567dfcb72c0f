"""What a run leaves: events as tables, and the parts of run.json that describe what it ran on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztprobe import __version__
from ztprobe.events.tables import (
    RINGS,
    TABLES,
    Names,
    decode,
    empty_tables,
    in_order,
    pairs_table,
    ring_type,
)
from ztprobe.pods.model import Pod
from ztprobe.probes.kallsyms import Kallsyms
from ztprobe.rundir.batches import BATCHES_DIR, read_parts
from ztprobe.rundir.store import RunDir

if TYPE_CHECKING:
    import pandas as pd

__all__ = ("pod_record", "read_tables", "save_events", "versions")

_VERSIONS = ("grpcio", "torch", "numpy", "pandas", "pyroute2")


def save_events(target: RunDir, drop_reasons: Mapping[str, str]) -> dict[str, int]:
    """Turn what the agent has written into the run's tables.

    :param drop_reasons: the kernel's numbers, as text, and their names.
    :returns: rows of each table.
    :raises RunDirError: the disk refuses.
    """
    rows = {}
    for name, table in read_tables(target, drop_reasons).items():
        target.write_events(name, table)
        rows[name] = len(table)
    return rows


def read_tables(target: RunDir, drop_reasons: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """What the agent has written as tables; it is gone from the run directory then.

    :param drop_reasons: see `save_events`.
    """
    tables = _tables(target.path / BATCHES_DIR, drop_reasons)
    shutil.rmtree(target.path / BATCHES_DIR, ignore_errors=True)
    return tables


def _tables(directory: Path, drop_reasons: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    import numpy as np

    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES if name != "pairs"}
    pairs: dict[tuple[int, int], int] = {}
    reasons = {int(number): name for number, name in drop_reasons.items()}
    symbol = Kallsyms().name_of
    for part in read_parts(directory):
        names = Names(
            pods={int(inode): name for inode, name in part.names["pods"].items()},
            processes={int(pid): name for pid, name in part.names["processes"].items()},
            reasons=reasons,
            symbol=symbol,
        )
        for ring in RINGS:
            rows = part.rows.get(ring, np.empty(0, ring_type(ring)))
            for name, table in decode(ring, rows, names).items():
                found[name].append(table)
        # Read once, at the end.
        pairs |= {(source, to): times for source, to, times in part.names.get("pairs", ())}
    tables = {name: in_order(name, parts) for name, parts in found.items() if parts}
    if not tables:
        return empty_tables()
    connections = tables["connections"]
    pod_of = dict(zip(connections["connection"].tolist(), connections["pod"].tolist(), strict=True))
    return tables | {"pairs": pairs_table(pairs, pod_of)}


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
