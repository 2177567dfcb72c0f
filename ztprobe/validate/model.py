"""What a scenario claims and what came of it: pairs of (true, attributed), bounds, verdicts. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ("CROSS_TALK_LIMIT", "Bound", "Outcome", "Pair", "ValidationCase", "judge")

CROSS_TALK_LIMIT = 0.03
_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How far attributed may be from true: the larger of the two."""

    absolute_ms: float = 0.0
    relative: float = 0.0

    def ns(self, true_ns: float) -> float:
        """For one true cost."""
        return max(self.absolute_ms * 1e6, self.relative * abs(true_ns))

    def __str__(self) -> str:
        absolute = f"{self.absolute_ms:g} ms" if self.absolute_ms else ""
        relative = f"{self.relative * 100:g} %" if self.relative else ""
        return " or ".join(filter(None, (absolute, relative)))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One injection in one round."""

    round: int
    size: str  # what was asked for; groups pairs, and is no truth
    true_ns: int
    attributed_ns: int
    # Of the injected cost: the part that the ledger put elsewhere. None: has no place of its own.
    elsewhere_ns: int | None = None


@dataclass(frozen=True, kw_only=True)
class ValidationCase:
    """All pairs of one size in one place."""

    where: str
    size: str
    pairs: tuple[Pair, ...]
    true_ns: float
    attributed_ns: float
    error_ns: float  # median of attributed - true
    error_ci95_ns: tuple[float, float]
    bound_ns: float
    cross_talk: float | None  # median share; None: not defined
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One scenario's result."""

    name: str
    title: str
    background: str
    bound: Bound
    cases: tuple[ValidationCase, ...]
    problems: tuple[str, ...]
    run_dir: str

    @property
    def passed(self) -> bool:
        """Every size within its bound, and nothing went wrong on the way."""
        return bool(self.cases) and not self.problems and all(case.passed for case in self.cases)


def judge(where: str, pairs: Sequence[Pair], bound: Bound) -> list[ValidationCase]:
    """Cases in order of appearance. One passes if its median error and cross-talk are within bounds.

    The median, because a shared machine may spoil single rounds; the interval says how far the
    single ones lie apart.
    """
    cases = []
    for size in dict.fromkeys(pair.size for pair in pairs):
        mine = [pair for pair in pairs if pair.size == size]
        errors = [pair.attributed_ns - pair.true_ns for pair in mine]
        shares = [p.elsewhere_ns / p.true_ns for p in mine if p.elsewhere_ns is not None and p.true_ns > 0]
        true_ns = statistics.median(pair.true_ns for pair in mine)
        error_ns = statistics.median(errors)
        bound_ns = bound.ns(true_ns)
        cross_talk = statistics.median(shares) if shares else None
        cases.append(
            ValidationCase(
                where=where,
                size=size,
                pairs=tuple(mine),
                true_ns=true_ns,
                attributed_ns=statistics.median(pair.attributed_ns for pair in mine),
                error_ns=error_ns,
                error_ci95_ns=_interval(errors),
                bound_ns=bound_ns,
                cross_talk=cross_talk,
                passed=abs(error_ns) <= bound_ns and (cross_talk or 0.0) <= CROSS_TALK_LIMIT,
            )
        )
    return cases


def _interval(errors: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median; of few values it is their whole range."""
    if len(errors) < 6:
        return (float(min(errors)), float(max(errors)))
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(errors, k=len(errors))) for _ in range(_RESAMPLES))
    return (float(medians[_RESAMPLES // 40]), float(medians[-_RESAMPLES // 40 - 1]))
