"""What a line of rounds.jsonl and clients.jsonl has to hold: writer and reader both go by it. Pure."""

from __future__ import annotations

from typing import Any

from ztprobe.documents.problem import shown

__all__ = ("problem_in_record",)

_LATEST_NS = (1 << 63) - 1
# Of a log's events, where they are there: what the analysis takes for granted.
_FIELDS: dict[str, tuple[type, ...]] = {
    "round": (int,),
    "client_id": (str,),
    "num_examples": (int,),
    "body_bytes": (int,),
    "accuracy": (int, float),
    "loss": (int, float),
    "seconds": (int, float),
}


def problem_in_record(record: Any) -> str | None:
    """What is wrong with one event; None: it is sound."""
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return "expected an object with a text field event"
    for clock in ("time_unix_ns", "time_monotonic_ns"):
        if type(record.get(clock)) is not int or not 0 <= record[clock] <= _LATEST_NS:
            return f"{clock} is {shown(record.get(clock))}, expected an integer below 2^63"
    for key, kinds in _FIELDS.items():
        if not _is(record.get(key), kinds):
            return f"{key} is {shown(record[key])}, expected {'text' if str in kinds else 'a number'}"
    return None


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    # true is an int to Python
    return value is None or (isinstance(value, kinds) and not isinstance(value, bool))
