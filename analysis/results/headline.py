"""A study's short table: completion, round times and overhead by network and level, beside those published.

All of it follows from study-rounds.parquet alone, so that a record that was published gives the table again.
Quiet runs alone, without further factors: the default number of clients, one connection for all rounds,
cubic, none of the workload's options. The published overhead is that of the p99 over sec0 under the same
network; that of ours stands beside it. Seconds depend on the machine, so each side also has its medians over
that of its own net0-sec0.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.report.wording import NOTHING, human_time, listed, plural
from analysis.results.published_benchmark import PUBLISHED, PUBLISHED_ATTEMPTS, PUBLISHED_ROUNDS, Published
from analysis.results.quantiles import quantile_interval_ns
from analysis.results.study_rounds import StudyRounds
from ztprobe.errors import RunDirError
from ztprobe.printable import printable_tree

__all__ = ("HeadlineRow", "headline_markdown", "headline_rows", "plain_rounds")

_WIDTH = 118  # characters of a line of text
_REFERENCE = "net0-sec0"
_SETTLED = 0.1  # of a round: what its first and last quarter may differ by and count as alike
_PLAIN = {
    "clients": 5,
    "reconnect": False,
    "congestion_control": "cubic",
    "level_switch": "none",
    "options": "",
}
_COLUMNS = (
    *("", "complete", "median round (95 %)", "p99", "p99 over sec0", "median over net0-sec0"),
    *("published: complete", "median", "p99", "p99 over sec0", "median over net0-sec0"),
)


@dataclass(frozen=True, kw_only=True)
class HeadlineRow:
    """One network and level; None: too few rounds, or no reference."""

    group: str
    planned: int
    complete: int
    attempts: int
    contended: int  # of those that are complete: left out of what follows
    rounds: int
    median_s: float
    median_ci95_s: tuple[float, float] | None
    p99_s: float | None
    p99_over_sec0: float | None
    median_over_reference: float | None
    published: Published | None

    @property
    def published_median_over_reference(self) -> float | None:
        """Of the printed seconds."""
        return None if self.published is None else self.published.median_s / PUBLISHED[_REFERENCE].median_s


def plain_rounds(rounds: StudyRounds) -> pd.DataFrame:
    """Counted rounds of quiet runs without further factors, with their ``group`` (net2-sec3) and ``run``.

    :raises RunDirError: there are none.
    """
    frame: pd.DataFrame = rounds.frame
    wanted = np.logical_and.reduce([frame[name] == value for name, value in _PLAIN.items()])
    frame = frame[wanted & ~frame["contended"].astype(bool)]
    if frame.empty:
        raise RunDirError(f"{rounds.study}: has no quiet run without further factors to make a table of")
    group = frame["profile"] + "-sec" + frame["level"].astype(str)
    run = frame["cell"] + "/r" + frame["repetition"].astype(str)
    return frame.assign(group=group, run=run)


def headline_rows(rounds: StudyRounds) -> list[HeadlineRow]:
    """One row a network and level, in their order.

    :raises RunDirError: see `plain_rounds`.
    """
    frame = plain_rounds(rounds)
    durations_ns = {
        str(group): [
            np.rint(one["duration_s"].to_numpy() * 1e9).astype(np.int64)
            for _, one in of.groupby("run", sort=False)
        ]
        for group, of in frame.groupby("group")
    }
    together = {group: np.concatenate(of).tolist() for group, of in durations_ns.items()}
    medians_ns = {group: statistics.median_ns(of) for group, of in together.items()}
    p99s_ns = {group: statistics.p99_ns(of) for group, of in together.items()}
    rows = []
    for group, of in durations_ns.items():
        tally = rounds.groups.get(group, {})
        interval_ns = quantile_interval_ns(of, 50)
        rows.append(
            HeadlineRow(
                group=group,
                **{name: tally.get(name, len(of)) for name in ("planned", "complete", "attempts")},
                contended=tally.get("contended", 0),
                rounds=len(together[group]),
                median_s=(medians_ns[group] or 0.0) / 1e9,
                median_ci95_s=None if interval_ns is None else (interval_ns[0] / 1e9, interval_ns[1] / 1e9),
                p99_s=_seconds(p99s_ns[group]),
                p99_over_sec0=_ratio(p99s_ns[group], p99s_ns.get(_sec0(group))),
                median_over_reference=_ratio(medians_ns[group], medians_ns.get(_REFERENCE)),
                published=PUBLISHED.get(group),
            )
        )
    return rows


def headline_markdown(rounds: StudyRounds) -> str:
    """The table and what has to be known to read it, as Markdown.

    :raises RunDirError: see `plain_rounds`.
    """
    rows = headline_rows(rounds)
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    paragraphs = [textwrap.fill(words, _WIDTH) for words in _sentences(rounds, rows)]
    return "\n\n".join(["\n".join(lines), *paragraphs]) + "\n"


def _cells(row: HeadlineRow) -> list[str]:
    attempts = f", {row.attempts} attempts" if row.attempts != row.planned else ""
    edges = "" if row.median_ci95_s is None else f" ({' … '.join(map(human_time, row.median_ci95_s))})"
    theirs = [NOTHING] * 4
    if (published := row.published) is not None:
        theirs = [str(published.completed), human_time(published.median_s), human_time(published.p99_s)]
        theirs.append(NOTHING if published.overhead_pct is None else f"+{published.overhead_pct:g} %")
    return [
        row.group,
        f"{row.complete} of {row.planned}{attempts}",
        f"{human_time(row.median_s)}{edges}",
        human_time(row.p99_s),
        _more(row.p99_over_sec0, row.group),
        _times(row.median_over_reference),
        *theirs,
        _times(row.published_median_over_reference),
    ]


def _sentences(rounds: StudyRounds, rows: list[HeadlineRow]) -> list[str]:
    frame: pd.DataFrame = rounds.frame
    told: Mapping[str, list[str]] = printable_tree(
        {name: sorted(frame[name].unique()) for name in ("machine", "kernel", "backend", "commit")}
    )
    backends = [one for one in told["backend"] if one != "none"]  # which net0 has
    days = sorted({one[:10] for one in frame["started"]})
    failed = sum(row.attempts - row.complete for row in rows)
    spoiled = sum(row.contended for row in rows)
    left_out = f" {plural(spoiled, 'run')} that others disturbed to the last left out." if spoiled else ""
    counts = sorted({row.rounds for row in rows})
    counted = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return [
        f"Ours: {rounds.study}, {plural(rounds.rounds_planned, 'round')} a run, {counted} counted ones behind"
        f" each line; network namespaces on one machine ({'; '.join(told['machine'])}; Linux"
        f" {listed(told['kernel'])}), networks emulated by {listed(backends) or 'nothing'},"
        f" {' to '.join(dict.fromkeys((days[0], days[-1])))}, commit {listed(told['commit'])}, data set"
        f" {rounds.dataset}. Intervals draw whole runs; {plural(failed, 'attempt')} failed or made anew."
        f"{left_out}{_settling(plain_rounds(rounds), rounds.rounds_planned)}",
        f"Published: Tables I and III of ZeroTrust-FLBench, {PUBLISHED_ROUNDS} rounds a run of MNIST on"
        f" minikube with 8 CPUs, means over 10 runs, {PUBLISHED_ATTEMPTS} attempts in all; its raw data"
        " cannot be found, another version of it has other seconds, and on which interface its netem stood is"
        " not told. Seconds differ by machine, data and rounds; what can be compared are the ratios.",
    ]


def _settling(frame: pd.DataFrame, planned: int) -> str:
    """Under which networks a run's last quarter of rounds takes another time than its first; or nothing."""
    quarter = planned // 4
    first = frame[frame["round"].between(2, 1 + quarter)].groupby("profile")["duration_s"].median()
    last = frame[frame["round"] > planned - quarter].groupby("profile")["duration_s"].median()
    told = [
        f"under {profile} the median of rounds 2 to {1 + quarter} is {human_time(first[profile])}, of"
        f" {planned - quarter + 1} to {planned} {human_time(last[profile])}"
        for profile in first.index.intersection(last.index)
        if quarter > 1 and abs(last[profile] / first[profile] - 1) > _SETTLED
    ]
    return (
        f" Rounds change within a run ({'; '.join(told)}): more of them have other medians." if told else ""
    )


def _sec0(group: str) -> str:
    return f"{group.rpartition('-')[0]}-sec0"


def _seconds(value_ns: float | None) -> float | None:
    return None if value_ns is None else value_ns / 1e9


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _more(ratio: float | None, group: str) -> str:
    if ratio is None or group.endswith("-sec0"):
        return NOTHING
    return f"{'−' if ratio < 1 else '+'}{abs(ratio - 1) * 100:.1f} %"


def _times(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"× {ratio:.3g}"
