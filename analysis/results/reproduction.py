"""Whether new runs say what a published study said: ratios to net0-sec0 against what it lets one expect.

Seconds depend on the machine, ratios much less. Of each seed the median round under a network and a level is
divided by that of net0-sec0 with the same seed, so that what a seed's data cost falls out. The study's ratios
give the prediction interval of the geometric mean of as many new ones: Student's, on the logarithmic scale,
by statsmodels' ordinary least squares with nothing but a mean, whose weight of a new observation is how many
are averaged. Runs during which others used the machine do not enter, neither the study's nor new ones: of new
ones that stayed so however often they were made anew, nothing is reproduced.

Such an interval holds what runs differ in, not what machines differ in: a machine on which training takes
another share of a round has other ratios, and the table says that then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.report.wording import plural
from analysis.results.study_rounds import StudyRounds
from analysis.statistics import LEVEL
from ztprobe.errors import RunDirError

__all__ = (
    "REFERENCE",
    "REPRODUCTION_SCHEMA_VERSION",
    "check_enough",
    "prediction_interval",
    "reproduction_of",
    "usable_ratios",
)

REPRODUCTION_SCHEMA_VERSION = 1  # of reproduction.json, as reproduction.schema.json has it
REFERENCE = "net0-sec0"
_LEAST_RATIOS = 2  # without a second one nothing is known of how they vary
_SETTINGS = ("distribution", "clients", "reconnect", "congestion_control", "level_switch", "options")


def prediction_interval(logarithms: Sequence[float], new: int) -> tuple[float, float]:
    """Where the mean of ``new`` further values lies in 95 of 100 cases, if these are drawn as those were.

    :param logarithms: two or more.
    """
    from statsmodels.regression.linear_model import OLS  # 1 s to import

    fitted = OLS(np.asarray(logarithms, dtype=float), np.ones(len(logarithms))).fit()
    found = fitted.get_prediction(np.ones((1, 1)), weights=np.array([float(new)]))
    low, high = found.conf_int(obs=True, alpha=1 - LEVEL)[0]
    return float(low), float(high)


def usable_ratios(rounds: StudyRounds, like: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Network and level -> seed and repetition -> median round over that of net0-sec0, of quiet runs.

    :param like: distribution, clients, reconnect, congestion_control, level_switch and options of runs that
        count.
    """
    frame = rounds.frame
    frame = frame[np.logical_and.reduce([frame[name] == like[name] for name in _SETTINGS])]
    frame = frame[~frame["contended"].astype(bool)]
    group = frame["profile"] + "-sec" + frame["level"].astype(str)
    run = "s" + frame["seed"].astype(str) + "-r" + frame["repetition"].astype(str)
    medians_s = frame.groupby([group, run])["duration_s"].median().to_dict()
    found: dict[str, dict[str, float]] = {}
    for key, median_s in medians_s.items():
        name, which = map(str, key)  # type: ignore[call-overload]
        if name != REFERENCE and (REFERENCE, which) in medians_s:
            found.setdefault(name, {})[which] = median_s / medians_s[REFERENCE, which]
    return found


def check_enough(recorded: StudyRounds, like: Mapping[str, Any], groups: Sequence[str]) -> None:
    """Whether a study can be held against, before anything is run.

    :param like: see `usable_ratios`.
    :param groups: networks and levels that are to be held, without the reference.
    :raises RunDirError: it has too few runs of one of them.
    """
    ratios = usable_ratios(recorded, like)
    for name in groups:
        if (count := len(ratios.get(name, {}))) < _LEAST_RATIOS:
            raise RunDirError(
                f"{recorded.study}: has {plural(count, 'pair')} of quiet runs of {name} and {REFERENCE}"
                f" ({like['distribution']}, {plural(like['clients'], 'client')}), and an interval needs"
                f" {_LEAST_RATIOS}: run more seeds of it on a quiet machine, or name another study"
            )


def reproduction_of(
    recorded: StudyRounds,
    new: StudyRounds,
    like: Mapping[str, Any],
    groups: Sequence[str],
    runs: int,
    repeated: int = 0,
) -> dict[str, Any]:
    """Hold new runs against a study that `check_enough` has let pass, as plain data.

    :param runs: new runs that each of the groups should have.
    :param repeated: attempts that others spoiled, and that were made anew.
    """
    before, after = usable_ratios(recorded, like), usable_ratios(new, like)
    rows = [_row(name, before[name], after.get(name, {}), runs) for name in groups]
    spoiled = new.frame.loc[new.frame["contended"].astype(bool), ["cell", "repetition"]].drop_duplicates()
    return {
        "schema_version": REPRODUCTION_SCHEMA_VERSION,
        "study": recorded.study,
        "rounds_planned": new.rounds_planned,
        "reference": REFERENCE,
        "level": LEVEL,
        "rows": rows,
        "reproduced": all(row["inside"] is True for row in rows),
        "contended_runs": len(spoiled),
        "left_out": sorted(f"runs/{one.cell}/r{one.repetition:02d}" for one in spoiled.itertuples()),
        "repeated_runs": repeated,
        "runs": len(new.frame.groupby(["cell", "repetition"])),
        "conditions": {"recorded": _conditions(recorded), "new": _conditions(new)},
    }


def _row(name: str, ratios: Mapping[str, float], seen: Mapping[str, float], runs: int) -> dict[str, Any]:
    recorded = [math.log(ratio) for ratio in ratios.values()]
    row: dict[str, Any] = {
        "group": name,
        "recorded_ratio": round(math.exp(math.fsum(recorded) / len(recorded)), 6),
        "recorded_ratios": {run: round(ratio, 6) for run, ratio in sorted(ratios.items())},
        "seen_ratio": None,
        "seen_ratios": {run: round(ratio, 6) for run, ratio in sorted(seen.items())},
        "missing": max(0, runs - len(seen)),  # they or their reference failed, or others spoiled one of them
        "interval95": None,
        "inside": None,
    }
    if not seen:
        return row
    low, high = prediction_interval(recorded, len(seen))
    mean = math.fsum(math.log(ratio) for ratio in seen.values()) / len(seen)
    # What is missing was planned: a ratio of fewer runs is shown, and reproduces nothing.
    inside = low <= mean <= high if not row["missing"] else None
    return row | {
        "seen_ratio": round(math.exp(mean), 6),
        "interval95": [round(math.exp(edge), 6) for edge in (low, high)],
        "inside": inside,
    }


def _conditions(rounds: StudyRounds) -> dict[str, list[str]]:
    return {
        name: sorted(rounds.frame[name].astype(str).unique().tolist()) for name in ("kernel", "backend")
    } | {"rounds": [str(rounds.rounds_planned)]}
