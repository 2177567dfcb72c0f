"""Bytes of a pipe or a growing file as whole lines of a bounded length, whatever is in them."""

from __future__ import annotations

__all__ = ("LONGEST_BYTES", "Lines")

LONGEST_BYTES = 64 << 10


class Lines:
    """Splits what is read; of a line that is longer than ``LONGEST_BYTES`` the beginning is kept.

    Without a line's end nothing more than that is held, so that binary garbage cannot fill the memory.
    """

    def __init__(self) -> None:
        self._part = bytearray()

    def take(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` ends, without their ends; the rest waits for the next call."""
        *ended, rest = data.split(b"\n")
        lines = []
        for piece in ended:
            self._keep(piece)
            lines.append(bytes(self._part).removesuffix(b"\r"))
            self._part.clear()
        self._keep(rest)
        return lines

    def close(self) -> list[bytes]:
        """The last line, where the source ended without a line's end."""
        rest, self._part = bytes(self._part), bytearray()
        return [rest] if rest else []

    def _keep(self, piece: bytes) -> None:
        self._part += piece[: LONGEST_BYTES - len(self._part)]
