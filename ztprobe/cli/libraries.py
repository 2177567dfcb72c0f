"""What libraries say (logging, warnings) becomes lines of ours instead of theirs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

__all__ = ("heard",)

_LONGEST = 300


class _Speaking(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        words = " ".join(record.getMessage().split())
        self._say(f"{record.name.partition('.')[0]}: {words[:_LONGEST]}")


@contextlib.contextmanager
def heard(say: Callable[[str], None]) -> Iterator[None]:
    """Pass what libraries log as a warning or worse, and Python's own warnings, to ``say``, a line each."""
    handler, root = _Speaking(say), logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
