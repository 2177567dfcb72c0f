"""A network profile's file as checked values: YAML, its schema, and the files that it names.

Whatever is wrong is one line with file, line, key and what was expected; the words behind
"expected" are the schema's descriptions. Lines come from YAML's own marks, and of a trace
(`ztprobe.profile.traces`) from its rows. Numbers are decimal, as people write them. What values
mean together is `ztprobe.profile.model.Profile`'s to say, which knows no lines:
`ProfileFile.place` translates its keys.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

from ztprobe.documents.files import read_text
from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_yaml import Keys, Parsed, decimal_scalar, parse_yaml
from ztprobe.errors import UsageError
from ztprobe.paths import NETPROFILES_DIR
from ztprobe.profile.schedule import CHANGING, Schedule, Step
from ztprobe.profile.traces import beside, read_samples, read_trace

__all__ = ("ProfileFile", "read_profile_file")

_MOST_BYTES = 16 << 20
_MOST_PROBLEMS = 10
# What other readers take for a number: octal, sexagesimal, hexadecimal, with separators, not a number.
_LIKE_A_NUMBER = re.compile(r"[-+]?(?:[0-9][0-9a-fA-FxXoO_:,.]*|\.(?:nan|inf))", re.IGNORECASE)


@dataclass(frozen=True)
class ProfileFile:
    """What a profile's file says: the arguments of `ztprobe.profile.model.Profile`."""

    path: Path
    values: dict[str, Any]
    _parsed: Parsed
    _rows: list[str] = field(default_factory=list)  # of a trace: file:line of every step

    def place(self, key: str) -> str:
        """``file:line`` of a key such as ``delay_ms`` or ``schedule.steps.2.jitter_ms``."""
        keys: Keys = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        if self._rows and keys[:2] == ("schedule", "steps"):
            return self._rows[int(keys[2])]
        return f"{self.path}:{self._parsed.line(keys)}"


def read_profile_file(path: Path) -> ProfileFile:
    """Read and check one file.

    :raises UsageError: it cannot be read, or a key or a value is wrong; names file, line and key.
    """
    try:
        text = read_text(path, _MOST_BYTES)
    except DocumentError as error:
        raise UsageError(f"{path}: cannot read this network profile: {_reason(error)}") from error
    try:
        documents = parse_yaml(text, decimal_scalar)
    except DocumentError as error:
        raise UsageError(f"{path}:{error.line or 1}: {error.problem}") from error
    if len(documents) > 1:
        raise UsageError(f"{path}: expected one profile, found {len(documents)} YAML documents")
    if not documents or documents[0].value is None:
        raise UsageError(f"{path}:1: expected a mapping of profile keys, found an empty file")
    return _read(path, documents[0])


def _read(path: Path, parsed: Parsed) -> ProfileFile:
    data = parsed.value
    # Whatever file was named, a message may not give away what it holds: only a profile is quoted.
    if not isinstance(data, dict) or not set(data) & set(_validator().schema["properties"]):
        raise UsageError(
            f"{path}:1: profile: expected a mapping of profile keys (name, description, delay_ms, ...), "
            "found something else"
        )
    # What is there and wrong comes before what is missing.
    wrong = sorted(
        _validator().iter_errors(data),
        key=lambda e: (e.validator == "required", list(map(str, e.absolute_path))),
    )
    if wrong:
        said = dict.fromkeys(_explain(path, parsed, error) for error in wrong[:_MOST_PROBLEMS])
        raise UsageError("\n".join(said))
    values = _typed(data)
    rows: list[str] = []
    if "samples_file" in values:
        if "samples_ms" in data:
            line = parsed.line(("samples_file",))
            raise UsageError(f"{path}:{line}: samples_file: expected no samples_ms beside it")
        where = f"{path}:{parsed.line(('samples_file',))}: samples_file"
        values["samples_ms"] = read_samples(beside(path, values.pop("samples_file")), where)
    elif "samples_ms" in values:
        values["samples_ms"] = tuple(float(value) for value in data["samples_ms"])
    if "schedule" in values:
        values["schedule"], rows = _schedule(path, parsed, values)
        for key in CHANGING:  # they are in the steps now
            values.pop(key, None)
    return ProfileFile(path, values, parsed, rows)


def _reason(error: DocumentError) -> str:
    return error.problem.removeprefix("cannot be read: ")


def _typed(data: Mapping[str, Any]) -> dict[str, Any]:
    # 1e4 is a whole number to the schema, and 80 is a number with a fraction to a delay.
    floats, integers = ("delay_ms", "jitter_ms", "_pct", "_mbit", "_s"), ("_bytes", "_packets")
    return {
        key: float(value) if key.endswith(floats) else int(value) if key.endswith(integers) else value
        for key, value in data.items()
    }


def _schedule(path: Path, parsed: Parsed, base: Mapping[str, Any]) -> tuple[Schedule, list[str]]:
    given = base["schedule"]
    line = parsed.line(("schedule",))
    if ("steps" in given) == ("trace_file" in given):
        found = "both" if "steps" in given else "neither"
        raise UsageError(f"{path}:{line}: schedule: expected either steps or trace_file, found {found}")
    if base.get("distribution") == "samples" or "samples_ms" in base:
        raise UsageError(f"{path}:{line}: schedule: expected no measured samples beside it")
    repeat = bool(given.get("repeat", False))
    rows: list[str] = []
    if "steps" in given:
        timed, period_ns = _timed_steps(path, parsed, given["steps"], repeat)
    else:
        where = f"{path}:{parsed.line(('schedule', 'trace_file'))}: schedule.trace_file"
        trace = read_trace(beside(path, given["trace_file"]), where, _validator().schema["properties"])
        timed, rows, period_ns = trace.timed, trace.rows, trace.period_ns
    steps = tuple(_step(at_ns, base, changes) for at_ns, changes in timed)
    if base.get("distribution", "none") != "none" and not any(step.jitter_ms for step in steps):
        where = f"{path}:{parsed.line(('distribution',))}"
        raise UsageError(f"{where}: distribution: expected jitter_ms above 0 in a step of the schedule")
    return Schedule(steps=steps, period_ns=period_ns if repeat else None), rows


def _step(at_ns: int, base: Mapping[str, Any], changes: Mapping[str, Any]) -> Step:
    values = {key: base[key] for key in CHANGING if key in base}
    values |= {key: changes[key] for key in CHANGING if key in changes}
    if not values.get("jitter_ms") and "distribution" not in changes:
        values.pop("distribution", None)  # the profile's, for steps that have jitter
    return Step(at_ns=at_ns, **values)


def _timed_steps(
    path: Path, parsed: Parsed, steps: Sequence[Mapping[str, Any]], repeat: bool
) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    timed, at_ns = [], 0
    for index, given in enumerate(steps):
        timed.append((at_ns, _typed(given)))
        if "for_s" in given:
            at_ns += round(given["for_s"] * 1e9)
        elif repeat or index + 1 < len(steps):
            line = parsed.line(("schedule", "steps", index))
            expected = _described("schedule", "steps", "for_s")
            raise UsageError(
                f"{path}:{line}: schedule.steps.{index}.for_s: expected {expected}, found nothing"
            )
    return timed, at_ns


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((NETPROFILES_DIR / "schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _described(*keys: str) -> str:
    found = _validator().schema
    for key in keys:
        found = found.get("items", found)["properties"][key]
    return str(found["description"])


def _explain(path: Path, parsed: Parsed, error: Any) -> str:
    where = tuple(error.absolute_path)
    schema = error.schema
    if error.validator == "required":
        missing, *more = (key for key in error.validator_value if key not in error.instance)
        # A conditional part of the schema only says "required"; the words stand beside the key itself.
        expected = _described(*(str(key) for key in where if not isinstance(key, int)), missing)
        key = ".".join(map(str, (*where, missing)))
        also = f" (nor {', '.join(more)})" if more else ""
        return f"{path}:{parsed.line(where)}: {key}: expected {expected}, found nothing{also}"
    if error.validator == "additionalProperties":
        known = schema["properties"]
        extra = next(key for key in error.instance if key not in known)
        line = parsed.line((*where, str(extra)))
        key = ".".join(map(str, (*where, extra)))
        return f"{path}:{line}: {key}: expected one of the keys {', '.join(known)}"
    key = ".".join(map(str, where)) or "profile"
    found = json.dumps(error.instance, default=str, ensure_ascii=False)
    expected = schema.get("description", error.message)
    hint = ""
    if error.validator == "type" and _LIKE_A_NUMBER.fullmatch(str(error.instance)):
        hint = " (numbers are decimal: 10, 0.5 or 1e2)"
    return f"{path}:{parsed.line(where)}: {key}: expected {expected}, found {found[:60]}{hint}"
