"""What a study or a comparison reads of a run's report, quickly and of many runs.

Of a saved report.json only the fields that are read here are checked, by report.schema.json's own words: the
whole schema over a thousand reports would take minutes. Runs without a report are analysed, on all CPUs where
there are several of them; the order is that of the runs.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

from analysis.report.report import REPORT_SCHEMA_VERSION, build_report
from ztprobe.documents.files import read_text
from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_json import parse_json

__all__ = ("REPORT_FILE", "load_summaries", "report_of_run", "saved_report")

REPORT_FILE = "report.json"
_MOST_BYTES = 256 << 20  # a report of 500 rounds and 200 clients has some 100 MB
_WORTH_A_PROCESS = 8  # runs to analyse; one that starts takes a second to import
# Field -> the fields of it that are read, or None for all of it.
_READ: dict[str, Any] = {
    "experiment": None,
    "runtime": None,
    "kernel": None,
    "facts": None,
    "started_unix_s": None,
    "emulation": {"backend": None},
    "contention": None,
    "accuracy": None,
    "rounds": {
        "round": None,
        "counted": None,
        "start_s": None,
        "duration_s": None,
        "components": None,
        "residual_s": None,
        "accuracy": None,
        "clients": {"client": None, "slack_s": None, "critical": None},
    },
}


def load_summaries(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Of each run the fields of its report that `_READ` names.

    :raises RunDirError: a run cannot be analysed; the first of them tells.
    """
    found = [_saved_summary(run / REPORT_FILE) for run in runs]
    missing = [run for run, one in zip(runs, found, strict=True) if one is None]
    analysed = iter(_analysed(missing))
    return [next(analysed) if one is None else one for one in found]


def report_of_run(run: Path) -> dict[str, Any]:
    """What a run's report.json would be. :raises RunDirError: the run cannot be analysed."""
    from analysis.load import load_analysed

    analysed = load_analysed(run)
    return build_report(analysed.run, analysed.ledger, analysed.baseline)


def saved_report(file: Path) -> dict[str, Any] | None:
    """None: not there, damaged, of another version, or no report: the raw run decides."""
    report = _parsed(file)
    return report if report is not None and _fits(report, _whole()) else None


def _saved_summary(file: Path) -> dict[str, Any] | None:
    report = _parsed(file)
    return _picked(report, _READ) if report is not None and _fits(report, _of_summaries()) else None


def _analysed(runs: Sequence[Path]) -> list[dict[str, Any]]:
    workers = min(os.cpu_count() or 1, len(runs) // _WORTH_A_PROCESS)
    if workers < 2:
        return [_analyse(run) for run in runs]
    # Not forked: pyarrow and numpy have threads, whose locks a copy would find taken.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts) as pool:
        try:
            return list(pool.map(_analyse, runs, chunksize=4))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _analyse(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = _picked(report_of_run(run), _READ)
    return summary


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for these


def _parsed(file: Path) -> dict[str, Any] | None:
    try:
        report = parse_json(read_text(file, _MOST_BYTES))
    except DocumentError:
        return None
    ours = isinstance(report, dict) and report.get("schema_version") == REPORT_SCHEMA_VERSION
    return report if ours else None


def _fits(report: Mapping[str, Any], validator: Any) -> bool:
    return next(validator.iter_errors(report), None) is None


def _picked(value: Any, names: Mapping[str, Any] | None) -> Any:
    if names is None:
        return value
    if isinstance(value, list):
        return [_picked(one, names) for one in value]
    return {name: _picked(value[name], of) for name, of in names.items()}


def _schema() -> dict[str, Any]:
    text = (resources.files("analysis.report") / "report.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


@functools.cache
def _whole() -> Any:
    import jsonschema  # 0.2 s to import

    return jsonschema.Draft202012Validator(_schema())


@functools.cache
def _of_summaries() -> Any:
    import jsonschema

    schema = _schema()
    return jsonschema.Draft202012Validator(_part(schema, _READ, schema["$defs"]) | {"$defs": schema["$defs"]})


def _part(schema: Mapping[str, Any], names: Mapping[str, Any] | None, parts: Mapping[str, Any]) -> Any:
    """The schema of a document of which only these fields are read.

    :param parts: the schema's ``$defs``; references to them are replaced by what they refer to, where fields
        are picked.
    """
    if names is None:
        return schema
    if "$ref" in schema:
        schema = parts[schema["$ref"].removeprefix("#/$defs/")]
    if "items" in schema:
        return {**schema, "items": _part(schema["items"], names, parts)}
    properties = schema["properties"]
    return {
        "type": "object",
        "required": list(names),
        "properties": {name: _part(properties[name], of, parts) for name, of in names.items()},
    }
