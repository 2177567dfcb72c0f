"""A study's counted rounds as one table, small enough to publish: study-rounds.parquet, written and read.

One row a counted round, with its run's factors, seconds for each part, and what the run was made on and when.
The file's metadata holds the study's name, how many rounds a run has, and how many runs of each group were
planned, complete, spoiled and tried. Everything that a study's report says of times follows from it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.results.samples import PARTS
from analysis.results.study_files import STUDY_FILE, option_words
from ztprobe.documents.files import read_bytes
from ztprobe.documents.problem import DocumentError
from ztprobe.errors import RunDirError

__all__ = (
    "RECORDS_DIR",
    "ROUNDS_FILE",
    "StudyRounds",
    "read_rounds",
    "rounds_frame",
    "rounds_of_study",
    "rounds_parquet",
    "study_rounds",
)

ROUNDS_FILE = "study-rounds.parquet"
RECORDS_DIR = Path(__file__).parent / "records"  # STUDY.parquet, of studies that come with ztprobe
_FACTORS = (
    "profile",
    "level",
    "distribution",
    "seed",
    "clients",
    "reconnect",
    "congestion_control",
    "level_switch",
)
_CONDITIONS = ("kernel", "backend", "machine", "commit", "started")
_OPTIONS = "options"  # the workload's, as `option_words` says them; empty: none
_COLUMNS = ("cell", *_FACTORS, _OPTIONS, "repetition", "contended", "round", *_CONDITIONS)
_WORDS = ("cell", "profile", "distribution", "congestion_control", "level_switch", _OPTIONS, *_CONDITIONS)
_FLAGS = ("reconnect", "contended")
_NUMBERS = ("level", "seed", "clients", "repetition", "round")
_PUBLISHED = "paper-80"
_KEY = b"ztprobe.study"
_MOST_BYTES = 64 << 20
_COUNT = {"type": "integer", "minimum": 0}
_TALLY = ("planned", "complete", "contended", "attempts")
_ABOUT = {
    "type": "object",
    "required": ["study", "rounds_planned", "dataset", "groups"],
    "properties": {
        "study": {"type": "string"},
        "rounds_planned": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
        "dataset": {"type": "string"},
        "groups": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": list(_TALLY),
                "properties": dict.fromkeys(_TALLY, _COUNT),
            },
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class StudyRounds:
    """What such a file holds."""

    study: str
    rounds_planned: int  # of each run
    frame: pd.DataFrame  # as `rounds_frame` makes it
    dataset: str = "digits"
    groups: Mapping[str, Mapping[str, int]]  # name -> runs planned, complete, contended, and attempts


def rounds_frame(cells: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a counted round, seconds in columns that end in ``_s``.

    :param cells: as `analysis.results.study` has them, with their samples.
    """
    tables = []
    for cell in cells:
        for sample, conditions in zip(cell["samples"], cell["conditions"], strict=True):
            table = pd.DataFrame(sample.parts_ns / 1e9, columns=[f"{part}_s" for part in PARTS])
            names = {"cell": cell["name"]} | {factor: cell[factor] for factor in _FACTORS}
            names[_OPTIONS] = " ".join(option_words(cell["fl"]))
            numbers = {"repetition": int(sample.path.name.lstrip("r")), "contended": sample.contended}
            for name, value in reversed((names | numbers | {"round": sample.rounds} | conditions).items()):
                table.insert(0, name, value)
            tables.append(table)
    if not tables:
        return pd.DataFrame(columns=[*_COLUMNS, *(f"{part}_s" for part in PARTS)])
    return pd.concat(tables, ignore_index=True)


def study_rounds(
    plan: Mapping[str, Any], report: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]
) -> StudyRounds:
    """Of a study that has been read.

    :param plan: study.json's.
    :param report: study-report.json's.
    :param cells: see `rounds_frame`.
    """
    return StudyRounds(
        study=report["study"],
        rounds_planned=report["rounds_planned"],
        dataset=plan.get("dataset", "digits"),
        groups={one["name"]: {name: one[name] for name in _TALLY} for one in report["groups"]},
        frame=rounds_frame(cells),
    )


def rounds_parquet(rounds: StudyRounds) -> bytes:
    """The file: the same rounds give the same bytes."""
    table = pa.Table.from_pandas(rounds.frame, preserve_index=False)
    about = {
        "study": rounds.study,
        "rounds_planned": rounds.rounds_planned,
        "dataset": rounds.dataset,
        "groups": {name: dict(tally) for name, tally in rounds.groups.items()},
    }
    table = table.replace_schema_metadata({_KEY: json.dumps(about).encode()})
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def rounds_of_study(name: str) -> StudyRounds:
    """Of a study that comes with ztprobe, or of a study's directory.

    :raises RunDirError: there is none; the line says what to do.
    """
    kept = RECORDS_DIR / f"{name}.parquet"
    if "/" not in name and kept.is_file():
        return read_rounds(kept)
    directory = Path(name)
    if (directory / ROUNDS_FILE).is_file():
        return read_rounds(directory / ROUNDS_FILE)
    if (directory / STUDY_FILE).is_file():
        raise RunDirError(f"{directory}: has no {ROUNDS_FILE} yet; `ztprobe report {directory}` writes it")
    raise RunDirError(
        f"{name}: no record of it comes with this ztprobe (analysis/results/records/{kept.name} is missing),"
        f" and no study stands at that path: run one (ztprobe sweep {_PUBLISHED}) and name its directory"
        " (--against DIR)"
    )


def read_rounds(file: Path) -> StudyRounds:
    """Read one strictly.

    :raises RunDirError: it is not there, is damaged, or is something else.
    """
    problem = f"{file}: is no {ROUNDS_FILE} of a study, or is damaged"
    try:
        table = pq.read_table(pa.BufferReader(read_bytes(file, _MOST_BYTES)))
        about = json.loads((table.schema.metadata or {})[_KEY])
        frame = table.to_pandas()
    except DocumentError as error:
        raise RunDirError(error.at(file)) from error
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise RunDirError(problem) from error
    if next(jsonschema.Draft202012Validator(_ABOUT).iter_errors(about), None) is not None:
        raise RunDirError(problem)
    missing = [name for name in (*_COLUMNS, "duration_s") if name not in frame]
    if missing:
        raise RunDirError(f"{file}: lacks the column {missing[0]}")
    typed = all(pd.api.types.is_integer_dtype(frame[name]) for name in _NUMBERS)
    typed &= all(pd.api.types.is_string_dtype(frame[name]) for name in _WORDS)
    typed &= all(pd.api.types.is_bool_dtype(frame[name]) for name in _FLAGS)
    durations = frame["duration_s"]
    if not typed or not pd.api.types.is_float_dtype(durations) or not (durations > 0).all():
        raise RunDirError(problem)
    told = {name: about[name] for name in ("study", "rounds_planned", "dataset", "groups")}
    return StudyRounds(**told, frame=frame)
