"""Counts of what an agent has seen, for whoever looks at it while it runs.

They are taken from the records on their way to the sink, a batch at a time, and are as many as are listed
here whatever the node holds: beyond a fixed number of pods and of reasons the rest are counted together.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from ztprobe.agent.counts import BEYOND, HANDSHAKE_BOUNDS_S, Counts, added
from ztprobe.events.kinds import EventKind
from ztprobe.events.layout import enums

__all__ = ("EventTally",)

_SYN, _ACK = 2, 16
_MOST_OPEN = 4096  # connections whose SYN has no answer yet
_RX, _TX = enums()["direction"]["rx"], enums()["direction"]["tx"]
_ETH = enums()["hook"]["eth"]


class EventTally:
    """Counts the records that it is shown."""

    def __init__(self) -> None:
        self._counts: Counts = {}
        self._asked_ns: dict[int, int] = {}  # connection -> its first SYN
        self._lock = threading.Lock()

    def count(self, ring: str, rows: np.ndarray, pods: Mapping[int, str], reasons: Mapping[int, str]) -> None:
        """Take a batch.

        :param pods: network namespace inode -> pod.
        :param reasons: the kernel's number of a reason for a drop -> its name.
        """
        if ring == "packets":
            found = self._handshakes(rows[rows["kind"] == int(EventKind.SETUP)])
        elif ring == "bursts":
            found = _messages(rows[rows["hook"] == _ETH], pods)
        elif ring == "drops":
            numbers, times = np.unique(rows["reason"], return_counts=True)
            named = [reasons.get(int(number), str(number)) for number in numbers]
            found = {"drops": dict(zip(named, times.tolist(), strict=True))}
        elif ring == "points":
            again = rows[rows["kind"] == int(EventKind.RETRANSMISSION)]
            found = {"retransmissions": {"": float(again.size)}}
        else:
            found = {}
        with self._lock:
            added(self._counts, found)

    def counts(self) -> Counts:
        """Up to now."""
        with self._lock:
            return {name: dict(labelled) for name, labelled in self._counts.items()}

    def _handshakes(self, rows: np.ndarray) -> Counts:
        # Of connections that pods of this node open: from their first SYN to its answer.
        flags, direction = rows["tcp_flags"], rows["direction"]
        asks = ((flags & (_SYN | _ACK)) == _SYN) & (direction == _TX)
        answers = ((flags & (_SYN | _ACK)) == _SYN | _ACK) & (direction == _RX)
        lasted_s, asked = [], 0
        both = asks | answers
        columns = rows["connection"][both], rows["ts_ns"][both], answers[both]
        for connection, ts_ns, is_answer in zip(*(column.tolist() for column in columns), strict=True):
            if not is_answer:
                if connection in self._asked_ns:
                    continue  # sent again
                if len(self._asked_ns) >= _MOST_OPEN:
                    self._asked_ns.pop(next(iter(self._asked_ns)))
                self._asked_ns[connection] = ts_ns
                asked += 1
            elif (asked_ns := self._asked_ns.pop(connection, None)) is not None:
                lasted_s.append((ts_ns - asked_ns) / 1e9)
        buckets: dict[str, float] = {}
        for bucket in np.searchsorted(HANDSHAKE_BOUNDS_S, lasted_s).tolist():
            label = str(HANDSHAKE_BOUNDS_S[bucket]) if bucket < len(HANDSHAKE_BOUNDS_S) else BEYOND
            buckets[label] = buckets.get(label, 0) + 1
        return {
            "connections_asked": {"": float(asked)},
            "handshakes": buckets,
            "handshakes_s": {"": float(sum(lasted_s))},
        }


def _messages(rows: np.ndarray, pods: Mapping[int, str]) -> Counts:
    # On pods' interfaces: from each message's first byte to its last.
    found: Counts = {}
    lasted_s = (rows["ts_ns"].astype(np.int64) - rows["first_ns"].astype(np.int64)) / 1e9
    for way, seconds, sizes in ((_TX, "sending_s", "sent_bytes"), (_RX, "receiving_s", "received_bytes")):
        for number in set(rows["netns"].tolist()):
            mine = (rows["netns"] == number) & (rows["direction"] == way)
            if pod := pods.get(number):
                found.setdefault(seconds, {})[pod] = float(np.clip(lasted_s[mine], 0, None).sum())
                found.setdefault(sizes, {})[pod] = float(rows["bytes"][mine].sum())
    return found
