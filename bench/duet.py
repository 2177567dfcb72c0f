"""How much narrower the interval of duet pairs is than that of pairs one after the other, at equal time.

    make bench BENCH_ARGS='--only duet'

Pairs of both kinds take turns, in an order that is drawn, so that the same hours of the machine fall on both.
A pair's figure is the logarithm of its round times' ratio; a kind's precision is the standard deviation of
these between pairs, times the root of what a pair of its kind takes: that is what the width of Student's
interval after a given time is proportional to. The interval of the ratio of the two is that of two variances
(Fisher's F).

First the machine is as it is, and pairs that others disturbed are left out, as `trace --repeat` does. Then
something takes a part of every CPU away, the same of all and another one every few seconds, before any other
thread: what a host does that gives its guest less for a while, and does not say so. ztprobe sees this one,
and would leave these pairs out; here they are kept, to show what both kinds make of what cannot be seen.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from analysis.results.samples import load_report, sample_of
from ztprobe.experiment.names import Experiment
from ztprobe.progress import QuietProgress
from ztprobe.rundir.temporary import scratch
from ztprobe.study.duet import run_duet
from ztprobe.study.execution import Tally, open_study, run_block
from ztprobe.study.plan import Cell, Study

__all__ = ("DuetResult", "measure_duet")

_LEVEL = 0.95
_EPOCH_S = 15.0
_MOST_TAKEN = 0.5  # of every CPU
# In each epoch another part of one CPU, drawn from a seed, in slices of 4 ms in front of whatever runs there.
_TAKER = """
import os, random, sys, time
cpu, seed, epoch_s, most = int(sys.argv[1]), *map(float, sys.argv[2:])
os.sched_setaffinity(0, {cpu})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
while True:
    epoch = time.monotonic() // epoch_s
    busy_s = 0.004 * random.Random(f"{seed} {epoch}").uniform(0, most)
    until = time.monotonic() + busy_s
    while time.monotonic() < until: pass
    time.sleep(0.004 - busy_s)
"""


@dataclass(frozen=True)
class DuetResult:
    """Pairs of one experiment and its baseline."""

    experiment: str
    rounds: int
    disturbed: bool
    one_by_one: list[tuple[float, float]]  # of each pair: log ratio of round times, seconds that it took
    at_once: list[tuple[float, float]]
    spoiled: dict[str, int]  # pairs that were left out

    def narrower(self) -> tuple[float, float, float]:
        """Width at equal time, of pairs at once over one by one, with its 95 % interval."""
        one_by_one, at_once = (np.array(pairs).T for pairs in (self.one_by_one, self.at_once))
        variance_ratio = np.var(at_once[0], ddof=1) / np.var(one_by_one[0], ddof=1)
        time_ratio = np.mean(at_once[1]) / np.mean(one_by_one[1])
        edges = stats.f.interval(_LEVEL, at_once.shape[1] - 1, one_by_one.shape[1] - 1)
        low, high = (math.sqrt(variance_ratio / edge * time_ratio) for edge in reversed(edges))
        return math.sqrt(variance_ratio * time_ratio), low, high

    def words(self) -> list[tuple[str, str, str]]:
        """What, value and goal of each row of the bench's table."""
        rows = []
        where = ", disturbed" if self.disturbed else ""
        for what, pairs in (("one after the other", self.one_by_one), ("at once", self.at_once)):
            logs, took_s = np.array(pairs).T
            edge = stats.t.interval(_LEVEL, len(logs) - 1, loc=logs.mean(), scale=stats.sem(logs))
            low, high = (100 * math.expm1(value) for value in edge)
            rows.append(
                (
                    f"{self.experiment}{where}: pairs {what}",
                    f"{100 * math.expm1(logs.mean()):+.1f} % [{low:+.1f}, {high:+.1f}], {len(logs)} pairs of"
                    f" {took_s.mean():.0f} s, between pairs ± {100 * logs.std(ddof=1):.2f} %",
                    "",
                )
            )
        ratio, low, high = self.narrower()
        text = f"{ratio:.2f} [{low:.2f}, {high:.2f}] times; left out: {sum(self.spoiled.values())} pairs"
        return [*rows, ("  width at equal time, at once over one by one", text, "< 1 is narrower")]


@contextlib.contextmanager
def _taking(seed: int) -> Iterator[None]:
    """A part of every CPU is taken away for the duration of the body."""
    takers: list[subprocess.Popen[bytes]] = []
    try:
        for cpu in sorted(os.sched_getaffinity(0)):
            values = (str(cpu), str(seed), str(_EPOCH_S), str(_MOST_TAKEN))
            takers.append(subprocess.Popen([sys.executable, "-S", "-c", _TAKER, *values]))
        yield
    finally:
        for one in takers:
            one.kill()
            one.wait()


def measure_duet(
    pairs: int, rounds: int, seed: int, advance: Callable[[int], None], *, disturbed: bool
) -> DuetResult:
    """Make so many pairs of each kind.

    :param disturbed: take a part of every CPU away meanwhile.
    :raises ZtprobeError: the machine cannot do it.
    """
    cells = tuple(Cell(experiment=Experiment(profile=p, level=s)) for p, s in (("net0", 0), ("net0", 2)))
    plan = Study(name="pair", rounds=rounds, cells=cells, repetitions=pairs, order_seed=seed)
    if disturbed:
        plan = replace(plan, contention_retries=0)
    studies = {kind: replace(plan, duet=kind) for kind in (False, True)}
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    spoiled = {False: 0, True: 0}
    draw = random.Random(seed)
    with scratch() as directory, contextlib.ExitStack() as stack:
        places = {kind: directory / ("at-once" if kind else "one-by-one") for kind in studies}
        if disturbed:
            stack.enter_context(_taking(seed))
        for kind, study in studies.items():
            places[kind].mkdir()
            stack.enter_context(open_study(study, places[kind]))
        for repetition in range(1, pairs + 1):
            for kind in draw.sample((False, True), 2):
                study, out = studies[kind], places[kind]
                began_s = time.monotonic()
                (run_duet if kind else run_block)(study, repetition, out, QuietProgress(), Tally(planned=2))
                took_s = time.monotonic() - began_s
                log_ratio = _log_ratio(
                    [out / "runs" / cell.name / f"r{repetition:02d}" for cell in cells], disturbed
                )
                if log_ratio is None:
                    spoiled[kind] += 1
                else:
                    found[kind].append((log_ratio, took_s))
                advance(1)
    return DuetResult(
        cells[1].experiment.name,
        rounds,
        disturbed,
        found[False],
        found[True],
        {"one by one": spoiled[False], "at once": spoiled[True]},
    )


def _log_ratio(runs: Sequence[Path], disturbed: bool) -> float | None:
    """Of the mean round times of a pair; None: it is not there, or others disturbed it and nobody was to."""
    if not all((run / "run.json").exists() for run in runs):
        return None
    reference, other = (sample_of(load_report(run), run) for run in runs)
    if not disturbed and (reference.contended or other.contended):
        return None
    return math.log(other.parts_ns[:, 0].mean() / reference.parts_ns[:, 0].mean())
