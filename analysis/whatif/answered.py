"""Which questions are answered: those that measured runs have shown to be told well enough.

Whether that holds for runs that had no part in the decision, a check of other runs says (`answered_by`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.whatif.check import errors_of, rows_like

__all__ = ("answered_by", "is_answered", "mean_error")

_MOST_ERROR = 0.1  # of a round: what predictions may be off by on average and still be told


def mean_error(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of a check's rows, as a share of the measured round: how far off they are on average, either way."""
    return sum(abs(float(row["error"])) for row in rows) / len(rows)


def is_answered(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a question is, of which checks have these rows."""
    return bool(rows) and mean_error(rows) <= _MOST_ERROR


def answered_by(check: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How far off those of a check's predictions are that would be answered by what other checks say alone.

    :param others: study -> its check; one that rests on the same runs has no say.
    :return: ``by`` (the studies), and the errors as shares of the measured round, None where none is.
    """
    measured = _measured_s(check)
    deciding = {name: one for name, one in others.items() if not measured & _measured_s(one)}
    rows = [
        row
        for row in check["rows"]
        if not row["contended"]
        and is_answered([like for one in deciding.values() for like in rows_like(one, row)])
    ]
    return {"by": list(deciding), "errors": errors_of(rows) if rows else None}


def _measured_s(check: Mapping[str, Any]) -> set[float]:
    """Means of measured cells, to the nanosecond: no two studies share one."""
    return {row["measured_s"] for row in check["rows"]}
