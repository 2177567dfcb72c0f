"""Something that is asked of an API again and again, behind the back of whoever uses the last answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ("Repeated",)

_ASK_AGAIN_S = 2.0


class Repeated:
    """Asks again by itself once the last answer is two seconds old; nobody waits for it.

    :param ask: keeps what it is told itself, and what went wrong.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._asked_s = time.monotonic()
        self._is_asking = False

    def look(self) -> None:
        """Begin to ask, if it is time to."""
        if time.monotonic() - self._asked_s > _ASK_AGAIN_S and not self._is_asking:
            self._is_asking = True
            threading.Thread(target=self._asked, daemon=True).start()

    def _asked(self) -> None:
        try:
            self._ask()
        finally:
            self._asked_s = time.monotonic()
            self._is_asking = False
