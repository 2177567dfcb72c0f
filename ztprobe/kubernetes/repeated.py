"""Something that is asked of an API again and again, behind the back of whoever uses the last answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ztprobe.errors import ZtprobeError

__all__ = ("NotedAnswers", "Repeated")

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


class NotedAnswers:
    """Asks an API, and notes once that it does not answer any more, and once that it does again.

    :param ask: keeps what it is told itself. :raises ZtprobeError: the API refuses or does not answer.
    :param meanwhile: what becomes of the last answer.
    """

    def __init__(self, ask: Callable[[], object], meanwhile: str) -> None:
        self._ask, self._meanwhile = ask, meanwhile
        self._notes: list[str] = []
        self.is_away = False
        self.problem = ""  # the last one

    def __call__(self) -> None:
        """Ask."""
        try:
            self._ask()
            if self.is_away:
                self._notes.append("the Kubernetes API answers again")
            self.is_away = False
        except ZtprobeError as error:
            self.problem = str(error)
            if not self.is_away:
                self._notes.append(f"{error}; {self._meanwhile}")
            self.is_away = True

    def note(self, text: str) -> None:
        """Something else that people should know."""
        self._notes.append(text)

    def fresh_notes(self) -> list[str]:
        """For people, since the last time."""
        notes, self._notes = self._notes, []
        return notes
