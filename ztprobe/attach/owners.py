"""The owners table of a finished run: what sockets told, and what the threads that used connections add."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ztprobe.attach.owner_log import OwnedEnd
from ztprobe.events.kinds import Hook
from ztprobe.events.owners import BY_EVENT, OWNERS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ("owners_table",)


def owners_table(
    ends: Sequence[OwnedEnd],
    tables: Mapping[str, pd.DataFrame],
    pods: Mapping[int, str],
    whose: Mapping[int, str],
) -> pd.DataFrame:
    """Of `ztprobe.events.owners.OWNERS`.

    :param pods: inode -> the namespace's name.
    :param whose: process -> participant, of all that there ever were.
    """
    import pandas as pd

    opened = _opened(tables["connections"])
    rows = []
    for end in ends:
        row = end.as_row(pods.get(end.netns, ""))
        ends_of = (end.netns, row["local"], row["local_port"], row["remote"], row["remote_port"])
        if end.older and any(
            at_ns <= end.last_seen_ns and at_ns > end.first_seen_ns for at_ns in opened.get(ends_of, ())
        ):
            row["older"] = 0  # the same ends, of a later connection
        rows.append(row)
    rows += _by_events(tables, whose, known={_key(row) for row in rows})
    # One look may have seen the same end twice: a row is a fact, and a fact stands there once.
    frame = pd.DataFrame(rows, columns=[column.name for column in OWNERS.columns]).drop_duplicates()
    integers = OWNERS.of_kind("integer")
    frame = frame.astype(dict.fromkeys(integers, "int64") | dict.fromkeys(OWNERS.of_kind("text"), object))
    frame = frame.sort_values(
        ["first_seen_ns", "local", "local_port", "remote", "remote_port"], kind="stable", ignore_index=True
    )
    frame.attrs["description"] = OWNERS.description
    frame.attrs["columns"] = {column.name: column.description for column in OWNERS.columns}
    return frame


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["netns"], row["local"], row["local_port"], row["remote"], row["remote_port"]


def _opened(connections: pd.DataFrame) -> dict[tuple[Any, ...], list[int]]:
    found: dict[tuple[Any, ...], list[int]] = {}
    columns = ("netns", "local", "local_port", "remote", "remote_port")
    for *ends, opened_ns in connections[[*columns, "opened_ns"]].itertuples(index=False):
        if opened_ns:
            found.setdefault(tuple(ends), []).append(opened_ns)
    return found


def _by_events(
    tables: Mapping[str, pd.DataFrame], whose: Mapping[int, str], known: Iterable[tuple[Any, ...]]
) -> list[dict[str, Any]]:
    """Ends of connections that no look has met, by the threads that read from them and wrote to them."""
    import pandas as pd

    used = [
        table.loc[table["hook"] == Hook.SOCK, ["connection", "tgid", "first_ns", "last_ns"]]
        for name in ("bursts", "turns")
        if (table := tables.get(name)) is not None and len(table)
    ]
    if not used:
        return []
    by_socket = pd.concat(used).groupby(["connection", "tgid"], as_index=False)
    spans = by_socket.agg({"first_ns": "min", "last_ns": "max"})
    ends: dict[Any, Any] = {row.connection: row for row in tables["connections"].itertuples(index=False)}
    seen, rows = set(known), []
    columns = (spans[name].tolist() for name in ("connection", "tgid", "first_ns", "last_ns"))
    for connection, tgid, first_ns, last_ns in zip(*columns, strict=True):
        end, participant = ends.get(connection), whose.get(tgid)
        if end is None or participant is None:
            continue
        row = {
            "first_seen_ns": int(first_ns),
            "pod": end.pod,
            "last_seen_ns": int(last_ns),
            "participant": participant,
            "pid": int(tgid),
            "local": end.local,
            "local_port": int(end.local_port),
            "remote": end.remote,
            "remote_port": int(end.remote_port),
            "family": end.family,
            "found": BY_EVENT,
            "older": int(not end.opened_ns),
            "netns": int(end.netns),
        }
        if _key(row) not in seen:
            seen.add(_key(row))
            rows.append(row)
    return rows
