"""Which rounds a loss of events touched, by how much, and what that makes of them.

The probes' reader looks at every loss counter with every drain, so run.json's ``loss_log``
says to within a drain's period when something was lost. All of an entry counts for every
round that its time overlaps. A burst is handed over when the next message in the other
direction begins, so one that was lost (``ring`` "bursts"), and one that was never kept
(``map_full``), may have described the round before: that one counts as touched too. What
``loss`` counts and the log does not place may have happened in any round. Without a connection's own row
(``ring`` "connections") nothing that it carries is known from then on, so every later round is touched.
``reader_behind`` is a warning and no loss.

A round's coverage is events seen over events seen and lost. A touched round's components
are uncertain by the time during which events were lost in it, plus its residual (missing
evidence leaves time unowned), plus, for every lost event, the longest time that an event of
this run speaks of (a pause or a repair is told when it ends); never by more than its
duration, which the server's own log gives. Intervals of
overheads are widened by the mean of that at both ends. Below a floor of coverage a round's
breakdown is withheld: it is left out of every statistic of components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.evidence.values import KernelEvents
from analysis.intervals import Interval, clip, total_ns, union

__all__ = ("COVERAGE_FLOOR", "RoundLoss", "losses_of")

COVERAGE_FLOOR = 0.95
_NEVER_NS = 1 << 62


@dataclass(frozen=True, kw_only=True)
class RoundLoss:
    """What was lost in one round."""

    lost_events: int
    coverage: float  # 0..1
    uncovered_ns: int  # time of the round in which something was being lost
    reach_ns: int = 0  # the longest time that one event speaks of

    def uncertainty_ns(self, duration_ns: int, residual_ns: int) -> int:
        """By how much each of the round's components may be off; 0 where nothing was lost."""
        if not self.lost_events:
            return 0
        return min(duration_ns, self.uncovered_ns + residual_ns + self.lost_events * self.reach_ns)


def losses_of(meta: Mapping[str, Any], events: KernelEvents, windows: Sequence[Interval]) -> list[RoundLoss]:
    """What was lost in each round.

    :param meta: run.json.
    :param windows: the rounds' (start, end) in CLOCK_MONOTONIC nanoseconds, in order.
    """
    lost = [0] * len(windows)
    spans: list[list[Interval]] = [[] for _ in windows]
    log = [entry for entry in meta.get("loss_log", []) if entry["channel"] != "reader_behind"]
    for entry in log:
        span = (entry["from_ns"], _NEVER_NS if entry.get("ring") == "connections" else entry["to_ns"])
        touched = [i for i, window in enumerate(windows) if clip([span], *window)]
        for i in touched:
            spans[i] += clip([span], *windows[i])
        for i in {*touched, *_before(entry, windows)}:
            lost[i] += entry["count"]
    anywhere = _total(meta) - sum(entry["count"] for entry in log)
    seen = [events.count_between(*window) for window in windows]
    found = []
    for i, (start_ns, end_ns) in enumerate(windows):
        count = lost[i] + max(0, anywhere)
        found.append(
            RoundLoss(
                lost_events=count,
                coverage=seen[i] / (seen[i] + count) if count else 1.0,
                uncovered_ns=end_ns - start_ns if anywhere > 0 else total_ns(union(spans[i])),
                reach_ns=events.reach_ns,
            )
        )
    return found


def _before(entry: dict[str, Any], windows: Sequence[Interval]) -> list[int]:
    """The last round that began and ended before something was lost that may speak of it."""
    if entry.get("ring") != "bursts" and entry["channel"] != "map_full":
        return []
    return [i for i, (_, end_ns) in enumerate(windows) if end_ns <= entry["from_ns"]][-1:]


def _total(meta: Mapping[str, Any]) -> int:
    counted = sum(count for channel, count in meta["loss"].items() if channel != "reader_behind")
    return int(counted + meta.get("events_unread", 0))
