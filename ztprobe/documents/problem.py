"""What is wrong with a document, and where in it."""

from __future__ import annotations

__all__ = ("DocumentError", "shown")

_SHOWN = 60


class DocumentError(ValueError):
    """A document that is not taken as it is.

    :param problem: a few words that can follow "FILE: ".
    :param line: where, counted from 1; None: it is not about one line.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem if line is None else f"line {line}: {problem}")
        self.problem = problem
        self.line = line

    def at(self, file: object) -> str:
        """``FILE:LINE: PROBLEM``, or without the line where there is none."""
        return f"{file}: {self.problem}" if self.line is None else f"{file}:{self.line}: {self.problem}"


def shown(value: object) -> str:
    """A value of a document for a message: printable, on one line and short."""
    text = ascii(value) if isinstance(value, bytes) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
