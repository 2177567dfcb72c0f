"""A network profile's file as checked values: YAML, its schema, and the files that it names.

Whatever is wrong is one line with file, line, key and what was expected; the words behind
"expected" are the schema's descriptions. Lines come from YAML's own marks, and of a CSV trace
from its rows. What values mean together is `ztprobe.profile.model.Profile`'s to say, which knows no
lines: `ProfileFile.place` translates its keys.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from ztprobe.errors import UsageError
from ztprobe.paths import NETPROFILES_DIR
from ztprobe.profile.schedule import CHANGING, Schedule, Step

__all__ = ("ProfileFile", "read_profile_file")

_COLUMNS = ("time_s", "delay_ms", "jitter_ms", "loss_pct", "rate_mbit")
_MOST_ROWS = 10_000
_MOST_BYTES = 16 << 20
# What YAML's messages take from the file. It may be any file, and is not ours to show.
_NAMED = re.compile(r"\b(alias|anchor|tag|handle) .*", re.DOTALL)
_MOST_PROBLEMS = 10
_SHORTEST_S = 0.01  # a change takes a few milliseconds

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class ProfileFile:
    """What a profile's file says: the arguments of `ztprobe.profile.model.Profile`."""

    path: Path
    values: dict[str, Any]
    _lines: dict[Keys, int]
    _rows: list[str] = field(default_factory=list)  # of a trace: file:line of every step

    def place(self, key: str) -> str:
        """``file:line`` of a key such as ``delay_ms`` or ``schedule.steps.2.jitter_ms``."""
        keys: Keys = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        if self._rows and keys[:2] == ("schedule", "steps"):
            return self._rows[int(keys[2])]
        while keys and keys not in self._lines:
            keys = keys[:-1]
        return f"{self.path}:{self._lines.get(keys, 1)}"


def read_profile_file(path: Path) -> ProfileFile:
    """Read and check one file.

    :raises UsageError: it cannot be read, or a key or a value is wrong; names file, line and key.
    """
    text = _text(path, f"{path}: cannot read this network profile: ")
    try:
        return _read(path, text)
    except RecursionError as error:
        raise UsageError(
            f"{path}:1: expected YAML, found: a nesting that is too deep, or has no end"
        ) from error


def _read(path: Path, text: str) -> ProfileFile:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        problem = re.sub(_NAMED, r"\1", getattr(error, "problem", None) or "something else")
        raise UsageError(f"{path}:{line}: expected YAML, found: {problem}") from error
    except ValueError as error:  # the 31st of February, or a number of 5,000 digits
        raise UsageError(f"{path}:1: expected YAML, found: {error}") from error
    if node is None:
        raise UsageError(f"{path}:1: expected a mapping of profile keys, found an empty file")
    # Whatever file was named, a message may not give away what it holds: only a profile is quoted.
    if not isinstance(data, dict) or not set(data) & set(_validator().schema["properties"]):
        raise UsageError(
            f"{path}:1: profile: expected a mapping of profile keys (name, description, delay_ms, ...), "
            "found something else"
        )
    lines = _lines(path, node)
    # What is there and wrong comes before what is missing.
    wrong = sorted(
        _validator().iter_errors(data),
        key=lambda e: (e.validator == "required", list(map(str, e.absolute_path))),
    )
    if wrong:
        said = dict.fromkeys(_explain(path, lines, error) for error in wrong[:_MOST_PROBLEMS])
        raise UsageError("\n".join(said))
    values = _floats(data)
    rows: list[str] = []
    if "samples_file" in values:
        values["samples_ms"] = _read_samples(path, lines[("samples_file",)], values.pop("samples_file"), data)
    elif "samples_ms" in values:
        values["samples_ms"] = tuple(float(value) for value in data["samples_ms"])
    if "schedule" in values:
        values["schedule"], rows = _schedule(path, lines, values)
        for key in CHANGING:  # they are in the steps now
            values.pop(key, None)
    return ProfileFile(path, values, lines, rows)


def _floats(data: Mapping[str, Any]) -> dict[str, Any]:
    floats = ("delay_ms", "jitter_ms", "_pct", "_mbit", "_s")
    return {k: float(v) if k.endswith(floats) else v for k, v in data.items()}


def _schedule(path: Path, lines: Mapping[Keys, int], base: Mapping[str, Any]) -> tuple[Schedule, list[str]]:
    given = base["schedule"]
    line = lines[("schedule",)]
    if ("steps" in given) == ("trace_file" in given):
        found = "both" if "steps" in given else "neither"
        raise UsageError(f"{path}:{line}: schedule: expected either steps or trace_file, found {found}")
    if base.get("distribution") == "samples" or "samples_ms" in base:
        raise UsageError(f"{path}:{line}: schedule: expected no measured samples beside it")
    repeat = bool(given.get("repeat", False))
    rows: list[str] = []
    if "steps" in given:
        timed, period_ns = _timed_steps(path, lines, given["steps"], repeat)
    else:
        where = f"{path}:{lines[('schedule', 'trace_file')]}: schedule.trace_file"
        quote = _is_beside(path, given["trace_file"])
        timed, rows = _read_trace(path.parent / given["trace_file"], where, quote=quote)
        # The last row stays as long as the one before it did.
        period_ns = 2 * timed[-1][0] - timed[-2][0]
    steps = tuple(_step(at_ns, base, changes) for at_ns, changes in timed)
    if base.get("distribution", "none") != "none" and not any(step.jitter_ms for step in steps):
        where = f"{path}:{lines[('distribution',)]}"
        raise UsageError(f"{where}: distribution: expected jitter_ms above 0 in a step of the schedule")
    return Schedule(steps=steps, period_ns=period_ns if repeat else None), rows


def _step(at_ns: int, base: Mapping[str, Any], changes: Mapping[str, Any]) -> Step:
    values = {key: base[key] for key in CHANGING if key in base}
    values |= {key: changes[key] for key in CHANGING if key in changes}
    if not values.get("jitter_ms") and "distribution" not in changes:
        values.pop("distribution", None)  # the profile's, for steps that have jitter
    return Step(at_ns=at_ns, **values)


def _timed_steps(
    path: Path, lines: Mapping[Keys, int], steps: Sequence[Mapping[str, Any]], repeat: bool
) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    timed, at_ns = [], 0
    for index, given in enumerate(steps):
        timed.append((at_ns, _floats(given)))
        if "for_s" in given:
            at_ns += round(given["for_s"] * 1e9)
        elif repeat or index + 1 < len(steps):
            line = lines[("schedule", "steps", index)]
            expected = _described("schedule", "steps", "for_s")
            raise UsageError(
                f"{path}:{line}: schedule.steps.{index}.for_s: expected {expected}, found nothing"
            )
    return timed, at_ns


def _is_beside(path: Path, name: str) -> bool:
    """Whether a file that the profile names is in the profile's directory or below: others are not quoted."""
    try:
        return (path.parent / name).resolve().is_relative_to(path.parent.resolve())
    except (OSError, RuntimeError):
        return False


def _quoted(cell: str, quote: bool) -> str:
    return repr(cell.strip()[:40]) if quote else "something else"


def _read_trace(file: Path, where: str, *, quote: bool) -> tuple[list[tuple[int, dict[str, Any]]], list[str]]:
    text = _text(file, f"{where}: expected a readable file, found {file}: ")
    timed: list[tuple[int, dict[str, Any]]] = []
    rows: list[str] = []
    header: list[str] | None = None
    reader = csv.reader(text.splitlines())
    for cells in reader:
        number, cells = reader.line_num, [cell.strip() for cell in cells]
        if not any(cells) or cells[0].startswith("#"):
            continue
        if header is None:
            header = cells
            unknown = [name for name in header if name not in _COLUMNS] or [
                name for name in set(header) if header.count(name) > 1
            ]
            if unknown or "time_s" not in header:
                named = unknown[0][:40] if quote and unknown else "something else"
                found = named if unknown else "no time_s"
                raise UsageError(f"{file}:{number}: expected columns of {', '.join(_COLUMNS)}, found {found}")
            continue
        if len(cells) != len(header):
            raise UsageError(
                f"{file}:{number}: expected {len(header)} values ({', '.join(header)}), found {len(cells)}"
            )
        changes: dict[str, Any] = {}
        for key, cell in zip(header, cells, strict=True):
            if key == "rate_mbit" and not cell:
                changes[key] = None  # not limited
                continue
            changes[key] = _number(cell, key, f"{file}:{number}", quote=quote)
        at_ns = round(changes.pop("time_s") * 1e9)
        least_ns = timed[-1][0] + round(_SHORTEST_S * 1e9) if timed else 0
        if at_ns < least_ns or (not timed and at_ns):
            expected = f"at least {least_ns / 1e9:g}, {_SHORTEST_S:g} after the row before" if timed else "0"
            found = cells[header.index("time_s")][:40] if quote else "something else"
            raise UsageError(f"{file}:{number}: time_s: expected {expected}, found {found}")
        timed.append((at_ns, changes))
        rows.append(f"{file}:{number}")
    if not 2 <= len(timed) <= _MOST_ROWS:
        raise UsageError(
            f"{file}:1: expected 2 to {_MOST_ROWS} rows below a line with the columns, found {len(timed)}"
        )
    return timed, rows


def _number(cell: str, key: str, where: str, *, quote: bool) -> float:
    schema: Mapping[str, Any] = (
        {"minimum": 0, "maximum": 604_800, "description": "a time in seconds from the trace's beginning"}
        if key == "time_s"
        else _validator().schema["properties"][key]
    )
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not schema["minimum"] <= value <= schema["maximum"]:
        raise UsageError(f"{where}: {key}: expected {schema['description']}, found {_quoted(cell, quote)}")
    return value


def _read_samples(path: Path, line: int, name: str, data: Mapping[str, Any]) -> tuple[float, ...]:
    if "samples_ms" in data:
        raise UsageError(f"{path}:{line}: samples_file: expected no samples_ms beside it")
    file = path.parent / name
    text = _text(file, f"{path}:{line}: samples_file: expected a readable file, found {file}: ")
    samples = []
    for number, cell in enumerate(text.splitlines(), 1):
        if not cell.strip() or cell.startswith("#"):
            continue
        try:
            sample = float(cell)
        except ValueError:
            sample = math.nan
        if not 0 <= sample <= 10_000:
            found = _quoted(cell, _is_beside(path, name))
            raise UsageError(f"{file}:{number}: expected a delay in milliseconds, 0 to 10000, found {found}")
        samples.append(sample)
    if len(samples) < 16:
        raise UsageError(f"{file}:1: expected at least 16 measured delays, found {len(samples)}")
    return tuple(samples)


def _text(file: Path, problem: str) -> str:
    try:
        with file.open("rb") as stream:  # which may be a pipe or a device
            found = stream.read(_MOST_BYTES + 1)
        text = found.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"{problem}{reason}") from error
    if len(found) > _MOST_BYTES:
        raise UsageError(f"{problem}larger than {_MOST_BYTES >> 20} MiB")
    return text


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((NETPROFILES_DIR / "schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _described(*keys: str) -> str:
    found = _validator().schema
    for key in keys:
        found = found.get("items", found)["properties"][key]
    return str(found["description"])


def _lines(path: Path, node: yaml.Node) -> dict[Keys, int]:
    # Path of keys -> line of the key, from YAML's own marks; a key given twice is an error,
    # which YAML loaders pass over.
    lines: dict[Keys, int] = {(): node.start_mark.line + 1}

    def walk(current: yaml.Node, where: Keys) -> None:
        if isinstance(current, yaml.MappingNode):
            for key, value in current.value:
                here = (*where, str(key.value))
                if here in lines:
                    line = key.start_mark.line + 1
                    raise UsageError(
                        f"{path}:{line}: {key.value}: expected each key once, found on line {lines[here]} too"
                    )
                lines[here] = key.start_mark.line + 1
                walk(value, here)
        elif isinstance(current, yaml.SequenceNode):
            for index, value in enumerate(current.value):
                lines[(*where, index)] = value.start_mark.line + 1
                walk(value, (*where, index))

    walk(node, ())
    return lines


def _explain(path: Path, lines: Mapping[Keys, int], error: Any) -> str:
    where = tuple(error.absolute_path)
    schema = error.schema
    if error.validator == "required":
        missing, *more = (key for key in error.validator_value if key not in error.instance)
        # A conditional part of the schema only says "required"; the words stand beside the key itself.
        expected = _described(*(str(key) for key in where if not isinstance(key, int)), missing)
        key = ".".join(map(str, (*where, missing)))
        also = f" (nor {', '.join(more)})" if more else ""
        return f"{path}:{lines.get(where, 1)}: {key}: expected {expected}, found nothing{also}"
    if error.validator == "additionalProperties":
        known = schema["properties"]
        extra = next(key for key in error.instance if key not in known)
        line = lines.get((*where, str(extra)), 1)
        key = ".".join(map(str, (*where, extra)))
        return f"{path}:{line}: {key}: expected one of the keys {', '.join(known)}"
    key = ".".join(map(str, where)) or "profile"
    found = json.dumps(error.instance, default=str, ensure_ascii=False)
    expected = schema.get("description", error.message)
    return f"{path}:{lines.get(where, 1)}: {key}: expected {expected}, found {found[:60]}"
