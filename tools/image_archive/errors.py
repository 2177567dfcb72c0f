"""What ends the making of an image with one line."""

from __future__ import annotations

__all__ = ("ImageError",)


class ImageError(Exception):
    """The line says what is wrong, and where."""
