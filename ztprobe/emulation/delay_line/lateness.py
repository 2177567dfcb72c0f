"""When a delay line was late, by its own account: it was stopped, or had no CPU. Pure.

A packet that leaves late has met another network than the profile's, and so has one that waited to be
read meanwhile. Both count from when something was due to when it was done; what overlaps or nearly
touches is one span.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ztprobe.profile.tolerance import mean_tolerance_ms

__all__ = ("LATE_NS", "SILENT_NS", "Lateness", "problem_in")

LATE_NS = 10_000_000  # of a packet; by themselves timers come late by some tens of microseconds
SILENT_NS = 15_000_000_000  # it writes its counters every second
_APART_NS = 100_000_000
_MOST_SPANS = 200
_LEAST_PACKETS = 10_000  # so that one bad moment at the beginning is not the mean of a run
_STANDSTILL_NS = 1_000_000_000  # TCP's first retransmission timeout
_FAR_BEYOND = 10


class Lateness:
    """Spans of CLOCK_MONOTONIC, in order, and how late packets were in them."""

    def __init__(self) -> None:
        self.packets = 0
        self.sum_ns = 0
        self.worst_ns = 0
        self._spans: list[list[int]] = []  # from, to, worst, packets

    def stood_still(self, from_ns: int, to_ns: int) -> None:
        """Nothing was read or let go from then on."""
        self._add(from_ns, to_ns, to_ns - from_ns, 0)

    def released(self, due_ns: list[int], now_ns: int) -> None:
        """These were let go just now, the longest due first."""
        late_ns = [now_ns - due for due in due_ns if now_ns - due > LATE_NS]
        if late_ns:
            self.packets += len(late_ns)
            self.sum_ns += sum(late_ns)
            self._add(due_ns[0], now_ns, late_ns[0], len(late_ns))

    def _add(self, from_ns: int, to_ns: int, worst_ns: int, packets: int) -> None:
        self.worst_ns = max(self.worst_ns, worst_ns)
        spans = self._spans
        while spans and (from_ns <= spans[-1][1] + _APART_NS or len(spans) >= _MOST_SPANS):
            earlier = spans.pop()
            from_ns, to_ns = min(from_ns, earlier[0]), max(to_ns, earlier[1])
            worst_ns, packets = max(worst_ns, earlier[2]), packets + earlier[3]
        spans.append([from_ns, to_ns, worst_ns, packets])

    def as_dict(self) -> dict[str, Any]:
        """For the counters' file."""
        return {
            "packets": self.packets,
            "sum_ns": self.sum_ns,
            "worst_ns": self.worst_ns,
            "spans": [
                {"from_ns": begin, "to_ns": end, "worst_ns": worst, "packets": packets}
                for begin, end, worst, packets in self._spans
            ],
        }


def problem_in(
    stats: Mapping[str, Any], mean_ms: float, now_ns: int, since: Mapping[str, Any] | None = None
) -> str | None:
    """Why packets did not get a profile's delay, from a delay line's counters; None: they did.

    A machine has busy moments of a tenth of a second, which mark rounds and no more. Packets have met
    another network once their mean is beyond the profile's tolerance, and either it stood still for as
    long as TCP notices or the mean is far beyond.

    :param mean_ms: that the profile asks for.
    :param now_ns: CLOCK_MONOTONIC.
    :param since: counters of an earlier moment, before which nothing counts.
    """
    silent_ns = now_ns - int(stats.get("written_ns", now_ns))
    if silent_ns > SILENT_NS:
        return f"the delay line has stood still for {silent_ns / 1e9:.0f} s"
    if not (late := stats.get("late")):
        return None
    packets, sum_ns, from_ns = sum(stats["packets"].values()), late["sum_ns"], 0
    if since:
        packets -= sum(since["packets"].values())
        sum_ns -= since["late"]["sum_ns"]
        from_ns = since["written_ns"]
    worst_ns = max((span["worst_ns"] for span in late["spans"] if span["to_ns"] > from_ns), default=0)
    mean_late_ms = sum_ns / 1e6 / max(packets, _LEAST_PACKETS)
    allowed_ms = mean_tolerance_ms(mean_ms)
    if mean_late_ms <= (allowed_ms if worst_ns >= _STANDSTILL_NS else _FAR_BEYOND * allowed_ms):
        return None
    return (
        f"the delay line was late by {worst_ns / 1e6:.0f} ms at worst and by {mean_late_ms:.2f} ms in the"
        f" mean, where {allowed_ms:.2g} ms are allowed: it was stopped, or had no CPU"
    )
