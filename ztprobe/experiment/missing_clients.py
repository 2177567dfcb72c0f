"""Clients that the first round waits for. Pure.

A client that cannot reach its server retries for as long as it is let, and the server waits for its
clients for a whole deadline of minutes. Whoever watches should not have to: what has not come after
`NAMED_AFTER_S` is named, once, with what it says itself (`ztprobe.experiment.stall_watch` says what its
connections say). The run goes on, because a slow network may yet let it through, and ends by the server's
own deadline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ("NAMED_AFTER_S", "Waiting", "words")

NAMED_AFTER_S = 20.0
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
