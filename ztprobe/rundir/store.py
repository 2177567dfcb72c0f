"""The run directory: the one bridge between measuring and analysing.

A run directory holds ``run.json``, ``rounds.jsonl`` (the server's events as logged),
``clients.jsonl`` (the clients', only to check the analysis), ``events/*.parquet``,
``logs/``, and after analysis ``report.json``, ``report.html`` and ``figures/``. A
baseline measured in the same call is a full run directory in ``baseline/``.

Every file but the growing ``.jsonl`` appears whole or not at all (written beside its
place, then renamed), and ``run.json`` comes last, so its ``"complete": true`` vouches
for all the others. Equal data gives equal bytes: no timestamps, no pandas metadata.
The loader refuses what it does not understand, in one line, and never guesses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztprobe.documents.files import read_bytes, read_text, sha256
from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_json import parse_json
from ztprobe.errors import RunDirError
from ztprobe.printable import escape_json
from ztprobe.rundir import files
from ztprobe.rundir.log_records import problem_in_record
from ztprobe.rundir.schema import problem_in

if TYPE_CHECKING:
    import pandas as pd

__all__ = (
    "BASELINE_DIR",
    "SCHEMA_VERSION",
    "Run",
    "RunDir",
    "create_run_dir",
    "dump_json",
    "load_run",
    "write_atomically",
)

SCHEMA_VERSION = 2
BASELINE_DIR = "baseline"

# The most that is read of a run that may be anybody's; a run of 500 rounds stays far below.
_MOST_JSON_BYTES = 64 << 20
_MOST_LOG_BYTES = 512 << 20
_MOST_TABLE_BYTES = 4 << 30
_MOST_ROWS = 20_000_000
_MOST_CELLS = 400_000_000
_LOGS = ("rounds.jsonl", "clients.jsonl")


@dataclass(frozen=True)
class RunDir:
    """A run directory that is being written."""

    path: Path

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as ``name``, whole or not at all. :raises RunDirError: the disk refuses."""
        write_atomically(self.path / name, dump_json(value))

    def append_jsonl(self, name: str, *records: Mapping[str, Any]) -> None:
        """Append one line per record to ``name``; without records the file is only made to exist.

        :raises RunDirError: the disk refuses.
        """
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        try:
            files.append(self.path / name, lines.encode())
        except OSError as error:
            raise RunDirError(f"{self.path / name}: cannot be written: {error.strerror}") from error

    def write_events(self, name: str, frame: pd.DataFrame) -> None:
        """Write ``frame`` as ``events/NAME.parquet``; its index is not kept, integers stay integers.

        What ``frame.attrs`` says of the table (``description``) and of its columns (``columns``: name ->
        description) becomes the file's key-value metadata, as text and as JSON: every reader shows it.

        :raises RunDirError: a column is not one plain type, or the disk refuses.
        """
        # pandas and pyarrow take 0.7 s to import, and commands that store nothing should not wait.
        import pyarrow as pa
        import pyarrow.parquet

        try:
            table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise RunDirError(f"events {name}: not a table of plain columns: {_first_line(error)}") from error
        sink = pa.BufferOutputStream()
        # Types are Parquet's own; pyarrow's copy of the schema would be half of a small file.
        with pyarrow.parquet.ParquetWriter(
            sink, table.schema, compression="zstd", store_schema=False
        ) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(_descriptions(frame.attrs))
        write_atomically(self.path / "events" / f"{name}.parquet", sink.getvalue().to_pybytes())

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Write ``run.json``, last: from now on the directory counts as a complete run.

        :raises RunDirError: a field has the wrong shape (nobody could load it), or the disk refuses.
        """
        whole = {**meta, "digests": self._digests(), "schema_version": SCHEMA_VERSION, "complete": True}
        if found := problem_in(whole):
            raise RunDirError(f"{self.path / 'run.json'}: {found}")
        self.write_json("run.json", whole)

    def _digests(self) -> dict[str, str]:
        # A byte that changes in a compressed table can be another number in the ledger, in silence.
        names = [*_LOGS, *(f"events/{table.name}" for table in (self.path / "events").glob("*.parquet"))]
        try:
            return {
                name: sha256(self.path / name, _MOST_TABLE_BYTES)
                for name in sorted(names)
                if (self.path / name).exists()
            }
        except DocumentError as error:
            raise RunDirError(f"{self.path}: cannot be finished: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Run:
    """A complete run as read back.

    ``meta`` is run.json; ``rounds`` and ``clients`` hold one dict per logged event, each with
    ``event``, ``time_unix_ns`` and ``time_monotonic_ns``; ``events`` maps a parquet file's stem to
    its rows (integer columns are integer, those with gaps pandas' nullable integers).
    """

    path: Path
    meta: dict[str, Any]
    rounds: list[dict[str, Any]]
    clients: list[dict[str, Any]] = field(default_factory=list)
    events: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The experiment's name, e.g. ``net2-sec3``."""
        return str(self.meta["experiment"]["name"])


def create_run_dir(path: Path, *, shown: Path | None = None) -> RunDir:
    """Make an empty run directory with its rooms.

    :param shown: what errors call it, if it will be renamed to that (default: ``path``).
    :raises RunDirError: ``path`` is there and not empty, is no directory, or cannot be written.
    """
    shown = shown or path
    try:
        with files.opened_directory(path, make=0o777) as directory:
            if os.listdir(directory):
                raise RunDirError(
                    f"{shown}: is not empty; choose another --out, a run never overwrites a run"
                )
            for room in ("events", "logs"):
                os.mkdir(room, dir_fd=directory)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunDirError(f"{shown}: is in the way of a directory; choose another --out") from error
    except OSError as error:
        raise RunDirError(f"{shown}: cannot be made: {error.strerror}; choose another --out") from error
    return RunDir(path)


def load_run(path: Path) -> Run:
    """Read a complete run back.

    :raises RunDirError: not a directory, incomplete, of a newer schema, or damaged; one line says which.
    """
    if not path.is_dir():
        raise RunDirError(f"{path}: {'is not a directory' if path.exists() else 'does not exist'}")
    meta = _read_meta(path)
    run = Run(
        path=path,
        meta=meta,
        rounds=_read_log(path / "rounds.jsonl"),
        clients=_read_log(path / "clients.jsonl") if (path / "clients.jsonl").exists() else [],
        events=_read_events(path / "events", meta.get("table_rows", {})),
    )
    _check_digests(path, meta.get("digests", {}))  # last: what cannot be read at all says more
    return run


def dump_json(value: Any) -> bytes:
    """``value`` as JSON that is the same for equal data: sorted keys, two spaces, a newline at the end.

    :raises ValueError: a number is not finite (JSON has no way to say so).
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return (escape_json(text) + "\n").encode()


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, whole or not at all; a missing parent directory is made.

    :raises RunDirError: the disk refuses, or somebody else could replace what is written there.
    """
    try:
        files.write_whole(path, content, make=0o777, durable=True)
    except OSError as error:
        raise RunDirError(f"{path}: cannot be written: {error.strerror}") from error


def _read_meta(path: Path) -> dict[str, Any]:
    name = path / "run.json"
    if not name.exists():
        raise RunDirError(f"{path}: run.json is missing: not a run directory, or a run that never finished")
    try:
        meta = parse_json(_read_text(name, _MOST_JSON_BYTES))
    except DocumentError as error:
        raise RunDirError(error.at(name)) from error
    if not isinstance(meta, dict):
        raise RunDirError(f"{name}: holds a {type(meta).__name__} where an object was expected")
    version = meta.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RunDirError(f"{name}: schema_version is {version!r}, expected {SCHEMA_VERSION}")
    if version < SCHEMA_VERSION:
        raise RunDirError(
            f"{name}: schema_version {version} is from an older ztprobe, whose events this one does not read "
            f"({SCHEMA_VERSION}); trace again, or report with the ztprobe that wrote it"
        )
    if version > SCHEMA_VERSION:
        raise RunDirError(
            f"{name}: schema_version {version} is newer than this ztprobe reads ({SCHEMA_VERSION}); "
            "update ztprobe"
        )
    if meta.get("complete") is not True:
        raise RunDirError(f"{path}: the run is incomplete; trace it again")
    if found := problem_in(meta):
        raise RunDirError(f"{name}: {found}")
    return meta


def _check_digests(path: Path, digests: Mapping[str, str]) -> None:
    for name, digest in digests.items():
        if name == _LOGS[1] and not (path / name).exists():
            continue  # the clients' own log is there to check the analysis, and may be left out
        try:
            found = sha256(path / name, _MOST_TABLE_BYTES)
        except DocumentError as error:
            raise RunDirError(error.at(path / name)) from error
        if found != digest:
            raise RunDirError(
                f"{path / name}: is damaged: it is not what the run wrote (run.json has its SHA-256)"
            )


def _read_log(name: Path) -> list[dict[str, Any]]:
    if not name.exists():
        raise RunDirError(f"{name.parent}: {name.name} is missing; the run cannot be analysed without it")
    records = []
    for number, line in enumerate(_read_text(name, _MOST_LOG_BYTES).splitlines(), start=1):
        try:
            record = parse_json(line)
        except DocumentError as error:
            raise RunDirError(f"{name}:{number}: {error.problem}") from error
        if (problem := problem_in_record(record)) is not None:
            raise RunDirError(f"{name}:{number}: {problem}")
        records.append(record)
    return records


def _read_events(directory: Path, rows: Mapping[str, int]) -> dict[str, pd.DataFrame]:
    if not directory.is_dir():
        raise RunDirError(f"{directory.parent}: events/ is missing; the run cannot be analysed without it")
    return {
        name.stem: _read_parquet(name, rows.get(name.stem, _MOST_ROWS))
        for name in sorted(directory.glob("*.parquet"))
    }


def _descriptions(attrs: Mapping[Any, Any]) -> dict[str, str]:
    if "description" not in attrs:
        return {}
    return {"description": attrs["description"], "columns": json.dumps(attrs["columns"])}


def _read_parquet(name: Path, most_rows: int) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        content = pa.py_buffer(read_bytes(name, _MOST_TABLE_BYTES))
        # ParquetFile, not read_table: that one would also infer columns from the directory's name.
        with pyarrow.parquet.ParquetFile(content) as stored:
            if (too_large := _too_large(stored.metadata, most_rows)) is not None:
                raise RunDirError(f"{name}: {too_large}")
            texts = [field.name for field in stored.schema_arrow if pa.types.is_string(field.type)]
        with pyarrow.parquet.ParquetFile(content, read_dictionary=texts) as stored:
            table = stored.read()
        table.validate(full=True)  # that texts are UTF-8 would otherwise show where they are first used
        if (text_bytes := _text_bytes(table)) > _MOST_TABLE_BYTES:
            raise RunDirError(
                f"{name}: unpacks to {text_bytes} bytes of text, at most {_MOST_TABLE_BYTES} are read"
            )
        return _frame(table)
    except DocumentError as error:
        raise RunDirError(error.at(name)) from error
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise RunDirError(f"{name}: is damaged: {_first_line(error)}") from error


def _frame(table: Any) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    # Left alone, an integer column with gaps becomes float64, which cannot hold a nanosecond clock.
    nullable = {
        pa.int8(): pd.Int8Dtype(),
        pa.int16(): pd.Int16Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.uint8(): pd.UInt8Dtype(),
        pa.uint16(): pd.UInt16Dtype(),
        pa.uint32(): pd.UInt32Dtype(),
        pa.uint64(): pd.UInt64Dtype(),
    }
    titles = table.column_names
    columns = {
        title: _as_text(column).to_pandas(types_mapper=nullable.get if column.null_count else None)
        for title, column in zip(titles, table.columns, strict=True)
    }
    return pd.DataFrame(columns, columns=titles)


def _too_large(metadata: Any, most_rows: int) -> str | None:
    # Known from the file's footer, before any of it is unpacked: 4 MB can be 60 million equal rows.
    rows, columns = metadata.num_rows, metadata.num_columns
    unpacked = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if rows > min(most_rows, _MOST_ROWS):
        return f"holds {rows} rows, expected at most {min(most_rows, _MOST_ROWS)}"
    if rows * columns > _MOST_CELLS:
        return f"holds {rows} rows of {columns} columns, at most {_MOST_CELLS} values are read"
    if unpacked > _MOST_TABLE_BYTES:
        return f"unpacks to {unpacked} bytes, at most {_MOST_TABLE_BYTES} are read"
    return None


def _text_bytes(table: Any) -> int:
    # Texts are read as what differs and a number for each row: one long text in every row is small in a file.
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = (
        chunk for column in table.columns for chunk in column.chunks if pa.types.is_dictionary(column.type)
    )
    lengths = (pc.take(pc.binary_length(chunk.dictionary), chunk.indices) for chunk in chunks)
    return sum(int(pc.sum(pc.cast(one, pa.int64())).as_py() or 0) for one in lengths)


def _as_text(column: Any) -> Any:
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _read_text(name: Path, most_bytes: int) -> str:
    try:
        return read_text(name, most_bytes)
    except DocumentError as error:
        raise RunDirError(error.at(name)) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
