"""Quantities of the Kubernetes API: memory and CPU limits as manifests write them. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ztprobe.documents.problem import shown
from ztprobe.errors import UsageError

__all__ = ("cpu_cores", "memory_bytes", "quantity_of")

# Quantities of the Kubernetes API: a decimal number, and a suffix or an exponent of ten.
_QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(?:([a-zA-Z]{1,2})|[eE]([+-]?\d{1,2}))?")
_SUFFIXES: Mapping[str | None, float] = {None: 1, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 10**3} | {
    letter + i: (1024 if i else 1000) ** (power + 1)
    for power, letter in enumerate("KMGTPE")
    for i in ("", "i")
    if letter + i != "K"
}


def quantity_of(text: Any) -> float | None:
    """What a quantity comes to; None: it is none."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None or match[2] not in _SUFFIXES:
        return None
    exponent = int(match[3] or 0)
    return float(match[1]) * _SUFFIXES[match[2]] * 10.0**exponent


def memory_bytes(where: str, text: Any) -> int:
    """A memory limit. :raises UsageError: it is none; names ``where``."""
    quantity = quantity_of(text)
    if quantity is None or not 1 <= quantity < 2**63:
        raise UsageError(f"manifests: {where}: memory limit {shown(text)}, expected something like 512Mi")
    return math.ceil(quantity)


def cpu_cores(where: str, text: Any) -> float:
    """A CPU limit, in cores. :raises UsageError: it is none; names ``where``."""
    quantity = quantity_of(text)
    if quantity is None or not 0 < quantity < 2**20:
        raise UsageError(f"manifests: {where}: CPU limit {shown(text)}, expected something like 500m or 2")
    return quantity
