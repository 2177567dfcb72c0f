"""Who ends within moments of somebody who ended with an error: often the one that brought it about."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ("await_followers",)

_WITHIN_S = 1.0
_POLL_S = 0.1


def await_followers(note: Callable[[], None], exits: Sequence[Mapping[str, Any]]) -> None:
    """Note exits for a moment more where one was an error; not where all were killed.

    An edge aggregator that fails gives its clients up first, and they end before it does.

    :param note: adds to the exits those that are new.
    """
    until_s = time.monotonic() + _WITHIN_S
    while any(one["status"] > 0 for one in exits) and time.monotonic() < until_s:
        time.sleep(_POLL_S)
        note()
