"""Rounds of federated learning for Prometheus.

An agent sees messages and knows no rounds. Whoever traces through it does: it tells how long each took as it
ends, and what the run's rounds consisted of once it has analysed them. A saved run's are written the same way
(`ztprobe export --format prometheus`). What was told last stands until a later run is told, so that series
are as many as one run has clients, and of those no more than are listed here.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from ztprobe.agent.counts import BEYOND, OTHER, Counts
from ztprobe.errors import UsageError
from ztprobe.printable import printable

__all__ = ("ToldRounds", "counts_of", "round_families", "run_families")

# Upper ends of the histogram's buckets.
_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)
_MOST_CLIENTS, _MOST_COMPONENTS = 64, 32
_LONGEST_LABEL = 253  # a pod's name
_COMPONENTS = "run_component_mean_s"
_BY_CLIENT = {"mean": "run_communication_mean_s", "longest": "run_communication_longest_s"}


class ToldRounds:
    """What one agent was told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: Counts = {"rounds": {}, "rounds_s": {"": 0.0}}  # since it began
        self._run: Counts = {}  # the one that was told last

    def round_ended(self, duration_s: Any) -> None:
        """One round more. :raises UsageError: no duration."""
        lasted_s = _number(duration_s)
        place = bisect.bisect_left(_BOUNDS_S, lasted_s)
        label = str(_BOUNDS_S[place]) if place < len(_BOUNDS_S) else BEYOND
        with self._lock:
            self._ended["rounds"][label] = self._ended["rounds"].get(label, 0) + 1
            self._ended["rounds_s"][""] += lasted_s

    def run_analysed(self, figures: Any) -> None:
        """A whole run. :raises UsageError: see `counts_of`."""
        counts = counts_of(figures)
        with self._lock:
            self._run = counts

    def counts(self) -> Counts:
        """Up to now."""
        with self._lock:
            return {name: dict(labelled) for name, labelled in {**self._ended, **self._run}.items()}


def counts_of(figures: Any) -> Counts:
    """A run as the report tells it (`analysis.results.round_figures`).

    :raises UsageError: it is none: whoever tells it may be of another version.
    """
    try:
        components = _labelled(figures["component_mean_s"], _MOST_COMPONENTS)
        means = _labelled(figures["communication_mean_s"], _MOST_CLIENTS)
        longest = _labelled(figures["communication_longest_s"], _MOST_CLIENTS)
        return {
            "run_rounds": {"": _number(figures["rounds"])},
            "run_ended_unix_s": {"": _number(figures["ended_unix_s"])},
            _COMPONENTS: {name: sum(values) for name, values in components.items()},
            _BY_CLIENT["mean"]: {name: sum(values) / len(values) for name, values in means.items()},
            _BY_CLIENT["longest"]: {name: max(values) for name, values in longest.items()},
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError("expected a run's figures: is the other side of another version?") from error


def _labelled(values: Mapping[str, Any], most: int) -> dict[str, list[float]]:
    # Beyond the first so many, all are one.
    found: dict[str, list[float]] = {}
    for number, (name, value) in enumerate(values.items()):
        label = printable(str(name), _LONGEST_LABEL) if number < most else OTHER
        found.setdefault(label, []).append(_number(value))
    return found


def _number(value: Any) -> float:
    if type(value) in (int, float) and math.isfinite(value) and value >= 0:
        return float(value)
    raise UsageError("expected a number of rounds or seconds")


def round_families(counts: Counts) -> Iterator[Any]:
    """For an agent's registry."""
    from prometheus_client.core import HistogramMetricFamily

    ended, buckets, there = counts.get("rounds", {}), [], 0.0
    for bound in (*map(str, _BOUNDS_S), BEYOND):
        there += ended.get(bound, 0)
        buckets.append((bound, there))
    yield HistogramMetricFamily(
        "ztprobe_agent_round_seconds",
        "Rounds that ended while a deployment was traced through this agent, on whose node its server is.",
        buckets,
        counts.get("rounds_s", {}).get("", 0),
    )
    yield from run_families(counts)


def run_families(counts: Counts) -> Iterator[Any]:
    """Of the run that was told last; none before that."""
    from prometheus_client.core import GaugeMetricFamily

    if "run_rounds" not in counts:
        return
    for name, help_, told in (
        ("rounds", "Rounds with a breakdown, of the run that was analysed last.", "run_rounds"),
        ("end_time_seconds", "When its last round ended, Unix time.", "run_ended_unix_s"),
    ):
        yield GaugeMetricFamily(f"ztprobe_run_{name}", help_, counts[told][""])
    parts = GaugeMetricFamily(
        "ztprobe_run_component_seconds",
        "Mean time a round by component, on the critical client's path; they add up to a round.",
        labels=["component"],
    )
    for component, seconds in counts[_COMPONENTS].items():
        parts.add_metric([component], seconds)
    yield parts
    family = GaugeMetricFamily(
        "ztprobe_run_communication_seconds",
        "Time of a round in which a client's messages were on their way: set-up, proxies and waiting too.",
        labels=["client", "statistic"],
    )
    for statistic, told in _BY_CLIENT.items():
        for client, seconds in counts[told].items():
            family.add_metric([client, statistic], seconds)
    yield family
