"""What an agent has seen, as counts: their names and labels, and how counts are added.

Without numpy, for whoever only hands them on: `ztprobe.agent.tally` takes them from events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ("BEYOND", "HANDSHAKE_BOUNDS_S", "OTHER", "Counts", "added")

# What is counted -> its label ("" where it has none) -> how often, or how many seconds.
Counts = dict[str, dict[str, float]]

OTHER = "other"
# How many labels each may have, besides "other".
_MOST_LABELS = {"drops": 40, "sending_s": 64, "receiving_s": 64, "sent_bytes": 64, "received_bytes": 64}
# Upper ends of the histogram's buckets: a quiet node's loopback up to a SYN that was sent again thrice.
HANDSHAKE_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BEYOND = "+Inf"


def added(counts: Counts, more: Mapping[str, Mapping[str, float]]) -> Counts:
    """Add to counts in place, and return them; a label for which there is no room counts as "other"."""
    for name, labelled in more.items():
        mine = counts.setdefault(name, {})
        for label, value in labelled.items():
            key = _label(mine, name, label)
            mine[key] = mine.get(key, 0) + value
    return counts


def _label(there: Iterable[str], name: str, label: str) -> str:
    known = set(there)
    full = len(known - {OTHER}) >= _MOST_LABELS.get(name, len(known) + 1)
    return OTHER if full and label not in known else label
