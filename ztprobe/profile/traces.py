"""Traces and measured delays that a profile names: CSV of our own, and rate traces as they are published.

Three kinds of trace are told apart by their first row. Names of columns: our CSV, a row per
change. Two numbers: a time in seconds and a rate in Mbit/s, as the published traces of mobile
networks for video streaming have it (Pensieve's "cooked" traces), separated by blanks, tabs or a
comma. One whole number: a mahimahi trace, in which every row is a millisecond at which one packet of
1,500 bytes can pass; it is read as the mean rate of every second.

A published rate of 0 is an outage: nothing arrives, which for a profile is a loss of 100 %. The rate of
the row before stays meanwhile, so that what is queued already does not burst through.

A message quotes a cell only where the file lies beside the profile or below: any other file may be
somebody's secret that was named by mistake, or on purpose.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztprobe.documents.files import read_text
from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_yaml import decimal
from ztprobe.errors import UsageError

__all__ = ("NamedFile", "Trace", "beside", "read_samples", "read_trace")

_COLUMNS = ("time_s", "delay_ms", "jitter_ms", "loss_pct", "rate_mbit")
_MOST_ROWS = 10_000
_MOST_BYTES = 16 << 20
_SHORTEST_S = 0.01  # a change takes a few milliseconds
_LONGEST_S = 604_800
_MAHIMAHI_BITS = 1500 * 8
_MS = 1_000_000
_SECOND_NS = 1_000_000_000
_EXPECTED_TIME = "a time in seconds from the trace's beginning"


@dataclass(frozen=True)
class NamedFile:
    """A file that a profile names."""

    path: Path
    quotable: bool  # it lies beside the profile or below

    def found(self, cell: str) -> str:
        """What to say of a cell that is wrong."""
        return repr(cell.strip()[:40]) if self.quotable else "something else"


@dataclass(frozen=True)
class Trace:
    """Changes in time: what each sets, the file and line that said so, and after how long it begins again."""

    timed: list[tuple[int, dict[str, Any]]]
    rows: list[str]
    period_ns: int


def beside(profile: Path, name: str) -> NamedFile:
    """The file that the profile at ``profile`` calls ``name``."""
    path = profile.parent / name
    try:
        quotable = path.resolve().is_relative_to(profile.parent.resolve())
    except (OSError, RuntimeError, ValueError):
        quotable = False
    return NamedFile(path, quotable)


def read_trace(file: NamedFile, where: str, schema: Mapping[str, Any]) -> Trace:
    """Read a trace of any of the three kinds.

    :param where: which key of the profile names it, for messages.
    :param schema: of a profile's keys; says what a column may hold.
    :raises UsageError: it cannot be read, or a row is wrong; names the trace's file and line.
    """
    rows = _rows(file, _text(file, where))
    first = next(rows, (1, []))
    numbers = [decimal(cell) for cell in _split(first[1])]
    if len(numbers) == 1 and isinstance(numbers[0], int):
        return _mahimahi(file, _again(first, rows))
    if len(numbers) == 2 and None not in numbers:
        return _rates(file, _again(first, rows), schema)
    return _csv(file, first, rows, schema)


def _again(
    first: tuple[int, list[str]], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    yield first
    yield from rows


def _split(cells: list[str]) -> list[str]:
    return cells[0].split() if len(cells) == 1 else cells


def _rows(file: NamedFile, text: str) -> Iterator[tuple[int, list[str]]]:
    # Line by line: a quote that is never closed would swallow the rest of the file.
    for number, line in enumerate(text.split("\n"), 1):
        try:
            cells = [cell.strip() for cell in next(csv.reader([line.rstrip("\r")], strict=True), [])]
        except csv.Error as error:
            problem = "a quote that is opened here is not closed on its line" if '"' in line else str(error)
            raise UsageError(f"{file.path}:{number}: {problem}") from error
        if any(cells) and not cells[0].startswith("#"):
            yield number, cells


def _csv(
    file: NamedFile,
    first: tuple[int, list[str]],
    rows: Iterator[tuple[int, list[str]]],
    schema: Mapping[str, Any],
) -> Trace:
    number, header = first
    unknown = [name for name in header if name not in _COLUMNS]
    unknown = unknown or [name for name in header if header.count(name) > 1]
    if header and (unknown or "time_s" not in header):
        shown = unknown[0][:40] if unknown and file.quotable else "something else"
        found = shown if unknown else "no time_s"
        raise UsageError(f"{file.path}:{number}: expected columns of {', '.join(_COLUMNS)}, found {found}")
    times = _Times(file)
    for number, cells in rows:
        if len(cells) != len(header):
            expected = f"expected {len(header)} values ({', '.join(header)})"
            raise UsageError(f"{file.path}:{number}: {expected}, found {len(cells)}")
        by_key = dict(zip(header, cells, strict=True))
        changes: dict[str, Any] = {}
        for key, cell in by_key.items():
            if key == "time_s":
                continue
            # An empty rate is no limit.
            no_limit = key == "rate_mbit" and not cell
            changes[key] = None if no_limit else _number(file, number, key, cell, schema)
        times.add(number, by_key["time_s"], changes)
    return times.trace()


def _rates(file: NamedFile, rows: Iterator[tuple[int, list[str]]], schema: Mapping[str, Any]) -> Trace:
    times = _Times(file, from_zero=False)
    for number, cells in rows:
        pair = _split(cells)
        if len(pair) != 2:
            raise UsageError(f"{file.path}:{number}: expected a time and a rate, found {len(pair)} values")
        rate = _number(file, number, "rate_mbit", pair[1], schema)
        times.add(number, pair[0], {"rate_mbit": rate})
    return times.trace()


def _mahimahi(file: NamedFile, rows: Iterator[tuple[int, list[str]]]) -> Trace:
    counts: dict[int, int] = {}
    lines: dict[int, int] = {}
    last_ms = 0
    for number, cells in rows:
        at_ms = decimal(cells[0]) if len(cells) == 1 else None
        if not isinstance(at_ms, int) or not last_ms <= at_ms <= 1000 * _LONGEST_S:
            expected = f"expected a whole number of milliseconds, at least {last_ms} (the row before)"
            raise UsageError(f"{file.path}:{number}: {expected}, found {file.found(','.join(cells))}")
        last_ms = at_ms
        second = max(0, at_ms - 1) // 1000  # a packet at 1000 ms belongs to the second that ends there
        counts[second] = counts.get(second, 0) + 1
        lines.setdefault(second, number)
    seconds = max(1, -(-last_ms // 1000))
    if not 2 <= seconds <= _MOST_ROWS:
        raise UsageError(
            f"{file.path}:1: expected 2 to {_MOST_ROWS} seconds of a mahimahi trace, found {seconds}"
        )
    if 1000 * seconds - last_ms > 1000 * (1 - _SHORTEST_S):
        seconds -= 1  # the rest is shorter than a step may be, and goes with the second before
        counts[seconds - 1] = counts.get(seconds - 1, 0) + counts.get(seconds, 0)
    timed, places = [], []
    line = 1
    for second in range(seconds):
        length_ms = (last_ms if second == seconds - 1 else 1000 * (second + 1)) - 1000 * second
        rate = counts.get(second, 0) * _MAHIMAHI_BITS / (1000 * length_ms)
        line = lines.get(second, line)
        timed.append((second * _SECOND_NS, {"rate_mbit": rate}))
        places.append(f"{file.path}:{line}")
    return Trace(_with_outages(timed), places, last_ms * _MS)


def _with_outages(timed: list[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    rates = [changes.get("rate_mbit") for _, changes in timed]
    rate = next(filter(None, rates), None)  # of an outage at the very beginning: the first that follows
    found = []
    for (at_ns, changes), own in zip(timed, rates, strict=True):
        if own == 0:
            changes = changes | {"loss_pct": 100.0, "rate_mbit": rate}
        else:
            rate = own
        found.append((at_ns, changes))
    return found


class _Times:
    # Changes that are collected in the order of their times.

    def __init__(self, file: NamedFile, *, from_zero: bool = True) -> None:
        self._file = file
        self._from_zero = from_zero  # or the first row's own time is where the trace begins
        self._begin_s = 0.0
        self._timed: list[tuple[int, dict[str, Any]]] = []
        self._rows: list[str] = []

    def add(self, number: int, cell: str, changes: dict[str, Any]) -> None:
        place = f"{self._file.path}:{number}"
        at_s = decimal(cell)
        if at_s is not None and not self._timed and not self._from_zero:
            self._begin_s = at_s
        if at_s is None or not 0 <= at_s - self._begin_s <= _LONGEST_S:
            raise UsageError(f"{place}: time_s: expected {_EXPECTED_TIME}, found {self._file.found(cell)}")
        at_ns = round((at_s - self._begin_s) * _SECOND_NS)
        least_ns = self._timed[-1][0] + round(_SHORTEST_S * _SECOND_NS) if self._timed else 0
        if at_ns < least_ns or (not self._timed and at_ns):
            least_s = least_ns / _SECOND_NS + self._begin_s
            expected = f"at least {least_s:g}, {_SHORTEST_S:g} after the row before" if self._timed else "0"
            found = cell[:40] if self._file.quotable else "something else"
            raise UsageError(f"{place}: time_s: expected {expected}, found {found}")
        if len(self._timed) == _MOST_ROWS:
            raise UsageError(f"{place}: expected at most {_MOST_ROWS} rows, found more")
        self._timed.append((at_ns, changes))
        self._rows.append(place)

    def trace(self) -> Trace:
        if len(self._timed) < 2:
            raise UsageError(
                f"{self._file.path}:1: expected 2 to {_MOST_ROWS} rows below a line with the columns,"
                f" found {len(self._timed)}"
            )
        # The last row stays as long as the one before it did.
        return Trace(_with_outages(self._timed), self._rows, 2 * self._timed[-1][0] - self._timed[-2][0])


def _number(file: NamedFile, number: int, key: str, cell: str, schema: Mapping[str, Any]) -> float:
    value = decimal(cell)
    limits = schema[key]
    is_outage = key == "rate_mbit" and value == 0
    if value is None or not (is_outage or limits["minimum"] <= value <= limits["maximum"]):
        outage = ", or 0 for an outage" if key == "rate_mbit" else ""
        raise UsageError(
            f"{file.path}:{number}: {key}: expected {limits['description']}{outage}, found {file.found(cell)}"
        )
    return float(value)


def read_samples(file: NamedFile, where: str) -> tuple[float, ...]:
    """Measured delays in milliseconds, one a line.

    :param where: which key of the profile names the file, for messages.
    :raises UsageError: it cannot be read, or a line is wrong; names the samples' file and line.
    """
    samples = []
    for number, line in enumerate(_text(file, where).split("\n"), 1):
        cell = line.strip()
        if not cell or cell.startswith("#"):
            continue
        sample = decimal(cell)
        if sample is None or not 0 <= sample <= 10_000:
            expected = "expected a delay in milliseconds, 0 to 10000"
            raise UsageError(f"{file.path}:{number}: {expected}, found {file.found(cell)}")
        samples.append(float(sample))
    if len(samples) < 16:
        raise UsageError(f"{file.path}:1: expected at least 16 measured delays, found {len(samples)}")
    return tuple(samples)


def _text(file: NamedFile, where: str) -> str:
    try:
        return read_text(file.path, _MOST_BYTES)
    except DocumentError as error:
        reason = error.problem.removeprefix("cannot be read: ")
        raise UsageError(f"{where}: expected a readable file, found {file.path}: {reason}") from error
