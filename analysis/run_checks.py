"""A saved run made fit for analysis, or refused in one line: the only door to the ledger.

Whatever a file on disk may have become (rows twice, in another order, cut off, from
another run, of another pod, columns renamed), the ledger must not be silently wrong. So
everything that it relies on is checked here first: columns and their types, rows counted
against what the run wrote down, times against the run's own beginning and end, pods against
their addresses and namespaces. Rows that are there twice are taken once, and rows are put
into one order, so that the same rows always give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.evidence.node_clocks import aligned, clock_notes
from analysis.evidence.reader import TIMES
from analysis.evidence.translation import untranslated
from analysis.ledger.roles import roles_of
from ztprobe.errors import RunDirError
from ztprobe.events.heads import address_bytes
from ztprobe.events.kinds import NODE
from ztprobe.events.owners import OWNERS
from ztprobe.events.tables import ATTACHED_TABLES, TABLES, Table, empty_table
from ztprobe.rundir.store import Run

__all__ = ("checked",)

_ADDRESSES = {"connections": ("local", "remote"), "dns": ("local", "remote"), "drops": ("source", "target")}
# Table -> its columns that name a connection.
_CONNECTIONS = {
    name: titles
    for name, kind in TABLES.items()
    if name != "connections"
    and (titles := [column.name for column in kind.columns if column.name.endswith("connection")])
}
_LOOPBACK = ("127.", "::1")
_LINK_LOCAL = "fe80:"  # which every interface has, and no list of addresses names
# Server events that a round has once, and those that lie in it.
_ONCE = ("round_start", "wait_end", "aggregate_end", "evaluate_end", "round_end")
_INSIDE = (*_ONCE, "send_start")


def checked(run: Run) -> tuple[Run, tuple[str, ...]]:
    """The run with clean tables, and what had to be done to them, as notes.

    :raises RunDirError: what is there cannot be one run's; the line says which file and why.
    """
    _check_pods(run)
    is_attached = "attachment" in run.meta
    tables = TABLES | ({"owners": OWNERS} if is_attached else {})
    if is_attached:
        ends = {name: _typed(run, tables[name]) for name in ("connections", "owners")}
        run = dataclasses.replace(run, events=run.events | untranslated(ends))
    if len(run.meta.get("nodes", ())) > 1:
        typed = {name: _typed(run, kind) for name, kind in tables.items()}
        run = aligned(dataclasses.replace(run, events=run.events | typed))
    begin_ns, end_ns = _time_of(run)
    notes = clock_notes(run)
    events: dict[str, pd.DataFrame] = {}
    for name, kind in tables.items():
        table = _typed(run, kind)
        kept = _ordered(kind, table)
        if len(kept) < len(table):
            notes.append(_twice(len(table) - len(kept), f"{name}.parquet"))
        recorded = run.meta.get("table_rows", {}).get(name)
        if recorded is not None and recorded != len(kept):
            raise RunDirError(
                f"{_where(run, name)}: holds {len(kept)} rows, and the run wrote {recorded}; "
                "the file was changed"
            )
        _check_pods_of(run, name, kept)
        if name in TIMES:
            _check_times(run, name, kept, begin_ns, end_ns)
        events[name] = kept
    _check_ends(run, "connections", events["connections"])
    _check_ends(run, "dns", events["dns"])
    for name, columns in _CONNECTIONS.items():
        _check_connections(run, name, events[name], events["connections"], columns)
    rounds = _logged(run, "rounds.jsonl", run.rounds, begin_ns, end_ns, notes)
    clients = _logged(run, "clients.jsonl", run.clients, begin_ns, end_ns, notes)
    _check_rounds(run, rounds)
    return dataclasses.replace(run, events=events, rounds=rounds, clients=clients), tuple(notes)


def _where(run: Run, name: str) -> str:
    return f"{run.path / 'events' / name}.parquet"


def _twice(count: int, where: str) -> str:
    return (
        f"{count} {'row' if count == 1 else 'rows'} of {where} stood there more than once; each counts once."
    )


def _check_pods(run: Run) -> None:
    pods = run.meta.get("pods")
    if not isinstance(pods, list) or not all(
        isinstance(pod, dict)
        and isinstance(pod.get("name"), str)
        and isinstance(pod.get("address"), str)
        and isinstance(pod.get("labels"), dict)
        for pod in pods
    ):
        raise RunDirError(f"{run.path / 'run.json'}: pods is no list of pods with name, address and labels")
    try:
        if "attachment" not in run.meta:  # there, who speaks with whom is seen and not told
            roles_of(run.meta)
    except ValueError as error:
        raise RunDirError(f"{run.path / 'run.json'}: {error}") from error
    for pod in pods:
        try:
            address_bytes(pod["address"])
        except ValueError:
            raise RunDirError(
                f"{run.path / 'run.json'}: pod {pod['name']} has the address {pod['address']!r}"
            ) from None


def _time_of(run: Run) -> tuple[int, int]:
    samples = [sample["time_monotonic_ns"] for sample in run.meta["clock_samples"]]
    if len(samples) < 2:
        return 0, 1 << 62
    # The first and the last one are taken around everything that is watched.
    return min(samples), max(samples)


def _typed(run: Run, kind: Table) -> pd.DataFrame:
    name, table = kind.name, run.events.get(kind.name)
    if table is None and name in ATTACHED_TABLES:
        return empty_table(name)  # runs that were recorded before there were such
    if table is None:
        raise RunDirError(f"{_where(run, name)}: is missing; the run cannot be analysed without it")
    for column in kind.columns:
        if column.name not in table:
            raise RunDirError(f"{_where(run, name)}: has no column {column.name}")
    integers = kind.of_kind("integer")
    if table.empty:  # columns without values have no type worth checking
        return table.astype(dict.fromkeys(integers, np.int64))
    for title in integers:
        values = table[title]
        if not pd.api.types.is_integer_dtype(values.dtype) or values.hasnans:
            raise RunDirError(f"{_where(run, name)}: {title} holds {_type_of(values)}, expected integers")
        if not (int(values.min()) >= 0 and int(values.max()) < 1 << 63):
            raise RunDirError(f"{_where(run, name)}: {title} holds numbers that no event can have")
    for title in kind.of_kind("text"):
        _check_texts(run, kind, title, table[title].tolist(), _type_of(table[title]))
    for title in kind.of_kind("bytes"):
        if set(map(type, table[title].tolist())) != {bytes}:
            raise RunDirError(f"{_where(run, name)}: {title} holds {_type_of(table[title])}, expected bytes")
    return table.astype(
        dict.fromkeys([title for title in integers if table[title].dtype != np.int64], np.int64)
    )


def _check_texts(run: Run, kind: Table, title: str, texts: Sequence[Any], what: str) -> None:
    where = _where(run, kind.name)
    if set(map(type, texts)) != {str}:
        raise RunDirError(f"{where}: {title} holds {what}, expected text")
    allowed = kind.column(title).values
    if allowed is not None and (strange := sorted(set(texts) - allowed)):
        raise RunDirError(f"{where}: {title} holds {strange[0][:40]!r}, which it cannot be")
    if title in _ADDRESSES.get(kind.name, ()):
        for text in set(texts) - {""}:
            try:
                address_bytes(text)
            except ValueError:
                raise RunDirError(f"{where}: {title} holds {text[:40]!r}, which is no address") from None


def _type_of(values: pd.Series[Any]) -> str:
    return "gaps" if values.isna().any() else f"values of type {values.dtype}"


def _ordered(kind: Table, table: pd.DataFrame) -> pd.DataFrame:
    """Each row once, in the kind's order and, where that ties, in that of all the others."""
    first = kind.order
    ordered = table.sort_values(first, kind="stable", ignore_index=True)
    # Few rows share their nanosecond, and only those can be equal: comparing whole rows is slow.
    ties = ordered[first].duplicated(keep=False)
    if not ties.any():
        return ordered
    others = sorted(column for column in table.columns if column != first)
    # Row by row: columns may hold bytes, which hash as well as integers do.
    tied = ordered[ties].drop_duplicates().sort_values([first, *others], kind="stable")
    return pd.concat([ordered[~ties], tied]).sort_values(first, kind="stable", ignore_index=True)


def _check_times(run: Run, name: str, table: pd.DataFrame, begin_ns: int, end_ns: int) -> None:
    times = table[TIMES[name]]
    outside = int(((times < begin_ns) | (times > end_ns)).sum())
    if outside:
        raise RunDirError(
            f"{_where(run, name)}: {outside} of {len(table)} rows lie outside of the run's time; "
            "they are another run's, or a clock is wrong"
        )
    beginnings = [column for column in ("first_ns", "since_ns", "first_sent_ns") if column in table]
    if any(bool((table[first] > times).any()) for first in beginnings):
        raise RunDirError(f"{_where(run, name)}: a row ends before it begins")


def _check_pods_of(run: Run, name: str, table: pd.DataFrame) -> None:
    """Rows belong to pods of this run, under the namespace that it wrote down."""
    pods = {pod["name"]: pod for pod in run.meta["pods"]}
    unknown = sorted(set(table["pod"].unique()) - set(pods) - {"", NODE})
    if unknown:
        raise RunDirError(f"{_where(run, name)}: holds rows of {unknown[0]!r}, which is no pod of this run")
    if "netns" not in table:
        return
    inodes = {pod: record.get("netns_inode") for pod, record in pods.items()}
    foreign = _differs(table, "netns", {pod: inode for pod, inode in inodes.items() if inode is not None})
    if bool(foreign.any()):
        pod = table["pod"][foreign].min()
        raise RunDirError(
            f"{_where(run, name)}: rows of {pod} come from another namespace than {pod}'s; "
            "pods or runs are mixed up"
        )


def _differs(table: pd.DataFrame, column: str, expected: Mapping[str, int]) -> NDArray[np.bool_]:
    """Where a row's value is not its pod's; rows of what has none are left in peace."""
    codes, pods = pd.factorize(table["pod"])
    # Columns hold nothing negative.
    wanted = np.array([expected.get(pod, -1) for pod in pods], dtype=np.int64)[codes]
    differs: NDArray[np.bool_] = (wanted >= 0) & (table[column].to_numpy() != wanted)
    return differs


def _check_ends(run: Run, name: str, table: pd.DataFrame) -> None:
    """A pod's end of a connection has the pod's address, or is on its loopback."""
    addresses = {pod["name"]: pod.get("addresses", [pod["address"]]) for pod in run.meta["pods"]}
    for pod, local in zip(table["pod"].tolist(), table["local"].tolist(), strict=True):
        if local not in addresses.get(pod, [local]) and not local.startswith((*_LOOPBACK, _LINK_LOCAL)):
            raise RunDirError(
                f"{_where(run, name)}: rows of {pod} have another address than {pod}'s; "
                "pods or runs are mixed up"
            )


def _check_connections(
    run: Run, name: str, table: pd.DataFrame, connections: pd.DataFrame, columns: Sequence[str]
) -> None:
    """An event of a connection happened in the pod whose connection that is.

    A connection whose own row was lost is nobody's; one that had none before the attachment likewise.
    """
    owner = dict(zip(connections["connection"].tolist(), connections["pod"].tolist(), strict=True))
    loss = run.meta.get("loss")
    whole = loss is not None and not any(loss.values()) and "attachment" not in run.meta
    for column in columns:
        for pod, connection in zip(table["pod"].tolist(), table[column].tolist(), strict=True):
            if whole and connection and connection not in owner:
                raise RunDirError(
                    f"{_where(run, name)}: {column} {connection} is no connection of connections.parquet, "
                    "and no event was lost; a file was changed"
                )
            # Nobody's, too: a namespace that the agent did not know yet when the connection's row was made.
            if owner.get(connection, pod) not in (pod, ""):
                raise RunDirError(
                    f"{_where(run, name)}: rows of {pod} are of connections of {owner[connection]}; "
                    "pods or runs are mixed up"
                )


def _logged(
    run: Run,
    name: str,
    records: Sequence[Mapping[str, Any]],
    begin_ns: int,
    end_ns: int,
    notes: list[str],
) -> list[dict[str, Any]]:
    """A log in the order of time, every line once."""
    lines = {json.dumps(record, sort_keys=True): dict(record) for record in records}
    if len(lines) < (count := len(records)):
        notes.append(_twice(count - len(lines), name))
    ordered = sorted(lines.items(), key=lambda item: (item[1]["time_monotonic_ns"], item[0]))
    for _, record in ordered:
        if not begin_ns <= record["time_monotonic_ns"] <= end_ns:
            raise RunDirError(
                f"{run.path / name}: {record['event']} lies outside of the run's time; "
                "it is another run's, or a clock is wrong"
            )
    return [record for _, record in ordered]


def _check_rounds(run: Run, rounds: Iterable[Mapping[str, Any]]) -> None:
    """Each round starts and ends once, and one round is over before the next begins."""
    path = run.path / "rounds.jsonl"
    times: dict[tuple[int, str], int] = {}
    for record in rounds:
        number = record.get("round")
        if not isinstance(number, int) or record["event"] not in _INSIDE:
            continue
        if record["event"] in _ONCE and (number, record["event"]) in times:
            raise RunDirError(f"{path}: round {number} has {record['event']} twice; two runs are mixed up")
        times[number, record["event"]] = record["time_monotonic_ns"]
    last_number, last_ns = None, 0
    whole = sorted(n for n, event in times if event == "round_start" and (n, "round_end") in times)
    for number in whole:
        start_ns, end_ns = times[number, "round_start"], times[number, "round_end"]
        if end_ns <= start_ns:
            raise RunDirError(f"{path}: round {number} ends before it starts")
        if last_number is not None and start_ns < last_ns:
            raise RunDirError(f"{path}: round {number} starts before round {last_number} is over")
        for event in _INSIDE:
            if not start_ns <= times.get((number, event), start_ns) <= end_ns:
                raise RunDirError(f"{path}: round {number}: {event} lies outside of the round")
        last_number, last_ns = number, end_ns
