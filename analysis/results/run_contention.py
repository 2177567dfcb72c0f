"""Whether a saved run had its machine to itself, for whoever is about to compare it with others."""

from __future__ import annotations

from pathlib import Path

from analysis import statistics
from analysis.contention import judge
from analysis.ledger.coverage import COVERAGE_FLOOR
from analysis.load import load_analysed
from analysis.report.contention_words import busy_words

__all__ = ("why_contended",)


def why_contended(run_dir: Path) -> str | None:
    """What others did to the machine in a run's counted rounds; None: it was quiet, or nobody recorded it.

    :raises RunDirError: the run cannot be analysed.
    """
    analysed = load_analysed(run_dir)
    counted = statistics.counted_rounds(analysed.ledger, COVERAGE_FLOOR)
    words = busy_words(judge((analysed.run, counted), None, None)["run"])
    return " and ".join(words) or None
