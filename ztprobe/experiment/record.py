"""What a run leaves: events as tables, and the parts of run.json that describe what it ran on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztprobe import __version__
from ztprobe.agent.interface import Account
from ztprobe.errors import WorkloadError
from ztprobe.events.kinds import NODE
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
from ztprobe.experiment.spec import RunSpec
from ztprobe.kernelnet.netns import inode
from ztprobe.pods.model import Pod
from ztprobe.probes.btf import Btf
from ztprobe.probes.kallsyms import Kallsyms
from ztprobe.rundir.batches import BATCHES_DIR, read_parts
from ztprobe.rundir.logs import read_events
from ztprobe.rundir.store import RunDir

if TYPE_CHECKING:
    import pandas as pd

__all__ = (
    "accounted",
    "described",
    "kernel_drop_reasons",
    "owners_of",
    "pod_record",
    "read_tables",
    "save_events",
    "save_logs",
    "tables_in",
    "versions",
)

_VERSIONS = ("grpcio", "torch", "numpy", "pandas", "pyroute2")


def kernel_drop_reasons() -> dict[str, str]:
    """This kernel's reasons for dropping a packet, as an agent tells them that lives to tell."""
    with Btf() as btf:
        return {str(number): name for number, name in btf.drop_reasons().items()}


def owners_of(pods: Iterable[Pod], processes: Mapping[int, str]) -> dict[str, Any]:
    """What numbers in events stand for, where the agent was killed before it could say so.

    :param processes: process id -> pod/container.
    """
    by_netns = {str(inode(pod.node_netns)): NODE for pod in pods}
    by_netns |= {str(pod.netns_inode): pod.name for pod in pods}
    return {"pods": by_netns, "processes": {str(pid): name for pid, name in processes.items()}}


def save_events(target: RunDir, account: Account, owners: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Turn what the agent has written into the run's tables.

    :param account: has the names of the agent's kernel for numbers and addresses in events.
    :param owners: see `owners_of`; None: the agent has lived to tell.
    :returns: rows of each table.
    :raises RunDirError: the disk refuses.
    """
    rows = {}
    for name, table in read_tables(target, account, owners).items():
        target.write_events(name, table)
        rows[name] = len(table)
    return rows


def read_tables(
    target: RunDir, account: Account, owners: Mapping[str, Any] | None = None
) -> dict[str, pd.DataFrame]:
    """What the agent has written as tables; it is gone from the run directory then. See `save_events`."""
    tables = tables_in(target.path / BATCHES_DIR, account, owners)
    shutil.rmtree(target.path / BATCHES_DIR, ignore_errors=True)
    return tables


def tables_in(
    directory: Path,
    account: Account,
    owners: Mapping[str, Any] | None,
    name_of: Callable[[int], str] | None = None,
) -> dict[str, pd.DataFrame]:
    """What an agent has written so far, as tables; it stays where it is.

    :param owners: see `owners_of`.
    :param name_of: names for addresses in the kernel, where the agent has told none (default: this kernel's).
    """
    import numpy as np

    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES if name != "pairs"}
    pairs: dict[tuple[int, int], int] = {}
    reasons = {int(number): name for number, name in account.drop_reasons.items()}
    places = {int(address): name for address, name in account.drop_places.items()}
    # An agent that has died told none; it ran on this machine.
    symbol = (lambda address: places.get(address, "")) if places else name_of or Kallsyms().name_of
    for part in read_parts(directory, owners):
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


def save_logs(target: RunDir, logs: Mapping[str, Path], server: str, *, is_whole: bool) -> None:
    """Keep the events of containers' logs: the server's as rounds.jsonl, all others' as clients.jsonl.

    :param logs: by pod.
    :param is_whole: False: what was killed may have left half a line, and is read as far as it goes.
    :raises WorkloadError: a line of a whole log begins like an event and is none.
    """
    for pod, log in logs.items():
        name = "rounds.jsonl" if pod == server else "clients.jsonl"
        target.append_jsonl(name)
        try:
            target.append_jsonl(name, *read_events(log))
        except WorkloadError:
            if is_whole:
                raise


def described(spec: RunSpec) -> dict[str, Any]:
    """What a run was asked for, and what it ran on."""
    experiment, options = spec.experiment, spec.options
    own = spec.own_cores
    return ({} if own is None else {"own_cores": dataclasses.asdict(own)}) | {
        "experiment": dataclasses.asdict(experiment) | {"name": experiment.name},
        "options": dataclasses.asdict(options) | {"data_dir": str(options.data_dir or "")},
        "runtime": spec.runtime,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "versions": versions(),
        "cores": (os.cpu_count() or 1) if own is None else len(own.cpus),
    }


def accounted(account: Account) -> dict[str, Any]:
    """What the agent told at the end."""
    return {
        "hooks": account.hooks,
        "probes": account.probes,
        "loss": account.loss,
        "loss_log": account.loss_log,
        "coverage": account.coverage,
        "events_seen": account.events_seen,
        "events_unread": account.events_unread,
        "emulator_cpu_ns": int(account.emulation.get("cpu_ns", 0)),
        "agent_cpu_ns": sum(probe["run_time_ns"] for probe in account.probes) + account.reader_cpu_ns,
        "agent_memory": account.memory,
    }


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
