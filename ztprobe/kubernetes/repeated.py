"""Something that is asked of an API again and again, behind the back of whoever uses the last answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ("Repeated",)

_ASK_AGAIN_S = 2.0


class Repeated:
    """Asks again by itself once the last answer is so old; nobody waits for it.

    :param ask: keeps what it is told itself, and what went wrong.
    :param every_s: how old the last answer may be; None: two seconds.
    """

    def __init__(self, ask: Callable[[], None], *, every_s: float | None = None) -> None:
        self._ask = ask
        self._every_s = every_s
        self._asked_s = time.monotonic()
        self._is_asking = False

    def look(self) -> None:
        """Begin to ask, if it is time to."""
        every_s = _ASK_AGAIN_S if self._every_s is None else self._every_s
        if time.monotonic() - self._asked_s > every_s and not self._is_asking:
            self._is_asking = True
            threading.Thread(target=self._asked, daemon=True).start()

    def _asked(self) -> None:
        try:
            self._ask()
        finally:
            self._asked_s = time.monotonic()
            self._is_asking = False
