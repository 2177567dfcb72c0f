"""The writing side of an agent's queue (`ztprobe.agent.spool`), and what its messages look like."""

from __future__ import annotations

import contextlib
import errno
import json
import struct
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from ztprobe.agent.sinks import Owners
from ztprobe.agent.spool import END, LOST, NAMES, SUFFIX
from ztprobe.rundir.batches import rows_of, table_of

__all__ = ("SpoolSink", "read_message")

_GROUP_ROWS = 1 << 14
_GROUP_S = 1.0  # what an agent that is killed takes along
_MOST_SEGMENTS = 50_000
# Names are needed to read what is queued already; they may go beyond the bound, this far.
_NAMES_BYTES = 8 << 20
# Of a segment: its kind's place in a list, its rows, its bytes. Without a collector 18,000 come in an hour
# and must not show in the agent's memory.
_ENTRY = struct.Struct("<BIQ")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class SpoolSink:
    """`ztprobe.agent.sinks.Sink` that queues on disk.

    :param directory: is made.
    :param most_bytes: of all files together; what does not fit is lost, and counted.
    """

    def __init__(self, directory: Path, most_bytes: int) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._most_bytes = most_bytes
        self._sequence = 0
        # What is queued, oldest first, by `_ENTRY`; the oldest one's number.
        self._queued: deque[bytes] = deque()
        self._oldest = 0
        self._queued_bytes = 0
        self._kinds: list[str] = []
        self._held: dict[str, list[np.ndarray]] = {}
        self._held_rows = 0
        self._since_s = time.monotonic()
        self._lost: list[dict[str, Any]] = []
        self._losing: dict[str, dict[str, Any]] = {}  # kind -> the entry that still grows

    def write(self, kind: str, rows: np.ndarray) -> None:
        """See `Sink`."""
        self._held.setdefault(kind, []).append(rows)
        self._held_rows += rows.size
        if self._held_rows >= _GROUP_ROWS or time.monotonic() - self._since_s >= _GROUP_S:
            self._flush()

    def change_owners(self, owners: Owners) -> None:
        """See `Sink`."""
        self._flush()
        self._put_names(NAMES, owners.as_dict())

    def close(self, owners: Owners, pairs: list[Any]) -> None:
        """See `Sink`."""
        self._flush()
        self._put_names(END, {**owners.as_dict(), "pairs": pairs})

    def losses(self) -> list[dict[str, Any]]:
        """See `Sink`."""
        return [dict(entry) for entry in self._lost]

    def _flush(self) -> None:
        for kind, held in self._held.items():
            rows = np.concatenate(held)
            if self._put(kind, rows.size, _message(table_of(rows), {"kind": kind}), self._most_bytes):
                self._losing.pop(kind, None)
            else:
                self._lose(kind, rows)
        self._held, self._held_rows, self._since_s = {}, 0, time.monotonic()

    def _put_names(self, kind: str, names: Mapping[str, Any]) -> None:
        said = {"kind": kind, "names": json.dumps(names)}
        if not self._put(kind, 0, _message(pa.table({}), said), self._most_bytes + _NAMES_BYTES):
            raise OSError(errno.ENOSPC, f"{self._directory}: no room for the names of what is queued")

    def _put(self, kind: str, rows: int, message: bytes, most_bytes: int) -> bool:
        self._forget_delivered()
        if self._queued_bytes + len(message) > most_bytes or len(self._queued) >= _MOST_SEGMENTS + (
            kind in (NAMES, END)
        ):
            return False
        path = self._path(self._sequence, kind, rows)
        unfinished = path.with_suffix(".partial")
        try:
            unfinished.write_bytes(message)
            unfinished.rename(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            if error.errno not in _NO_ROOM:
                raise
            return False
        self._sequence += 1
        if kind not in self._kinds:
            self._kinds.append(kind)
        self._queued.append(_ENTRY.pack(self._kinds.index(kind), rows, len(message)))
        self._queued_bytes += len(message)
        return True

    def _path(self, sequence: int, kind: str, rows: int) -> Path:
        return self._directory / f"{sequence:012d}.{kind}.{rows}{SUFFIX}"

    def _forget_delivered(self) -> None:
        while self._queued:
            kind, rows, size = _ENTRY.unpack(self._queued[0])
            if self._path(self._oldest, self._kinds[kind], rows).exists():
                return
            self._queued.popleft()
            self._queued_bytes -= size
            self._oldest += 1

    def _lose(self, kind: str, rows: np.ndarray) -> None:
        times = rows["ts_ns"]
        from_ns, to_ns = int(times.min()), int(times.max()) + 1
        entry = self._losing.get(kind)
        if entry is None:
            entry = {"from_ns": from_ns, "to_ns": to_ns, "channel": "queue_full", "count": 0, "ring": kind}
            self._lost.append(entry)
            self._losing[kind] = entry
        entry["count"] += rows.size
        entry |= {"from_ns": min(entry["from_ns"], from_ns), "to_ns": max(entry["to_ns"], to_ns)}
        counted: dict[str, int] = {}
        for each in self._lost:
            counted[each["ring"]] = counted.get(each["ring"], 0) + each["count"]
        with contextlib.suppress(OSError):  # the disk is full, perhaps; `losses` says it all the same
            unfinished = self._directory / f"{LOST}.partial"
            unfinished.write_text(json.dumps(counted))
            unfinished.rename(self._directory / LOST)


def read_message(message: bytes) -> tuple[dict[str, str], np.ndarray]:
    """A segment's metadata (``kind``, and ``names`` as JSON where it has no rows) and its rows.

    :raises pa.ArrowInvalid: it is none.
    """
    with pa.ipc.open_stream(message) as stream:
        table = stream.read_all()
    metadata = table.schema.metadata or {}
    said = {key.decode(): value.decode() for key, value in metadata.items()}
    return said, rows_of(table) if table.num_columns else np.empty(0)


def _message(table: Any, said: Mapping[str, str]) -> bytes:
    table = table.replace_schema_metadata(dict(said))
    out = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with pa.ipc.new_stream(out, table.schema, options=options) as stream:
        stream.write_table(table)
    return out.getvalue().to_pybytes()  # type: ignore[no-any-return]
