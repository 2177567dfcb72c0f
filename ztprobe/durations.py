"""How long something is to take, as people type it."""

from __future__ import annotations

import re

from ztprobe.errors import UsageError

__all__ = ("duration_s",)

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_LONGEST_DAYS = 30
_SECONDS = re.compile(r"\d+(?:\.\d+)?")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")


def duration_s(option: str, text: str, *, longest_days: int = _LONGEST_DAYS) -> float:
    """Seconds in ``90``, ``90s``, ``500ms``, ``10m``, ``1h30m`` or ``2d``.

    :param option: that it was given for.
    :raises UsageError: it is no time, none at all, or longer than that.
    """
    word = text.strip()
    if _SECONDS.fullmatch(word):
        word += "s"
    parts = _PART.findall(word)
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    is_whole = "".join(number + unit for number, unit in parts) == word
    if not is_whole or not 0 < seconds <= 86_400 * longest_days:
        raise UsageError(
            f"{option} {text}: expected a time such as 90s, 10m or 1h30m, {longest_days} days at most"
        )
    return seconds
