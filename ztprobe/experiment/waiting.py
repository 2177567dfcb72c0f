"""What a run waits for without getting on: clients before the first round, and anything in a round. Pure.

A client that cannot reach its server retries for as long as it is let, and the server waits for its
clients for a whole deadline of minutes. Whoever watches should not have to: what has not come after
`NAMED_AFTER_S` is named, once, and so is a round in which nothing has happened for `STILL_S` (no event,
no CPU time to speak of, hardly a packet). The run goes on, because a slow network may yet let it
through, and ends by the server's own deadline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ztprobe.process.activity import Activity

__all__ = ("NAMED_AFTER_S", "STILL_S", "Still", "Waiting", "still_words", "words")

NAMED_AFTER_S = 20.0
STILL_S = 25.0
# Work and traffic of processes that only wait: timers, keep-alives, retransmissions, retried look-ups. The
# slowest link of a profile (10 kbit/s) still carries twice as much.
_IDLE_CPU_SHARE = 0.01
_IDLE_BYTES = 16_000
_FEW = 3


class Waiting:
    """The clients of one run, from their start to the first round.

    :param since_s: when they were started, on a clock of the caller's.
    """

    def __init__(self, clients: Iterable[str], since_s: float) -> None:
        self._missing = list(clients)
        self._since_s = since_s
        self._is_over = False

    def take(self, event: Mapping[str, Any]) -> None:
        """An event of the server: a client is there, or the first round begins."""
        if event.get("event") == "round_start":
            self._is_over = True
        elif event.get("event") == "client_ready" and event.get("client_id") in self._missing:
            self._missing.remove(event["client_id"])

    def overdue(self, now_s: float) -> list[str] | None:
        """Who has not come, once it is time to say so; an empty list: all are there, and no round begins."""
        if self._is_over or now_s - self._since_s < NAMED_AFTER_S:
            return None
        self._is_over = True
        return list(self._missing)


def words(missing: list[str], last_words: str) -> str:
    """What to say of clients that have not come.

    :param last_words: of the first of them.
    """
    if not missing:
        return f"all clients have reached the server, and no round has begun after {NAMED_AFTER_S:.0f} s"
    more = f" and {len(missing) - _FEW} more" if len(missing) > _FEW else ""
    have = "has" if len(missing) == 1 else "have"
    return (
        f"{', '.join(missing[:_FEW])}{more} {have} not reached the server after {NAMED_AFTER_S:.0f} s,"
        f" and the first round waits for that; {missing[0]} says: {last_words}"
    )


class Still:
    """Whether anything happens in the rounds of a run.

    :param clients: who is to contribute to each round.
    """

    def __init__(self, clients: Iterable[str]) -> None:
        self._clients = list(clients)
        self._came: set[str] = set()
        self._round: int | None = None  # None: no round is open
        self._moved: tuple[float, Activity] | None = None  # when something last happened, and the totals then
        self._is_said = False

    def take(self, event: Mapping[str, Any]) -> None:
        """An event of the server."""
        self._moved = None
        if event.get("event") == "round_start":
            self._round, self._came = event.get("round"), set()
        elif event.get("event") == "round_end":
            self._round = None
        elif event.get("event") == "update_received":
            self._came.add(str(event.get("client_id")))

    def overdue(self, now_s: float, done: Activity) -> tuple[int, list[str]] | None:
        """The round in which nothing happens and who has not contributed, once each time.

        :param done: by all processes of the workload, so far.
        """
        if self._round is None:
            return None
        if self._moved is None or _something(now_s - self._moved[0], self._moved[1], done):
            self._moved, self._is_said = (now_s, done), False
            return None
        if self._is_said or now_s - self._moved[0] < STILL_S:
            return None
        self._is_said = True
        return self._round, [client for client in self._clients if client not in self._came]


def _something(elapsed_s: float, before: Activity, after: Activity) -> bool:
    windows = max(1.0, elapsed_s / STILL_S)
    cpu_s, network_bytes = after.cpu_s - before.cpu_s, after.network_bytes - before.network_bytes
    is_idle = cpu_s <= windows * _IDLE_CPU_SHARE * STILL_S and network_bytes <= windows * _IDLE_BYTES
    return not is_idle or min(cpu_s, network_bytes) < 0  # less than before: a process has ended


def still_words(number: int, missing: list[str]) -> str:
    """What to say of a round in which nothing happens."""
    more = f" and {len(missing) - _FEW} more" if len(missing) > _FEW else ""
    whom = f"it waits for {', '.join(missing[:_FEW])}{more}" if missing else "every client has contributed"
    return f"round {number} stands still: no event, no work and no data for {STILL_S:.0f} s; {whom}"
