"""Names for addresses in the kernel, from /proc/kallsyms.

Read once, when the first name is asked for: 200,000 lines take a tenth of a second. Where the kernel hides
addresses (kernel.kptr_restrict, or a reader without the capability) there are no names.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from pathlib import Path

__all__ = ("Kallsyms",)


class Kallsyms:
    """Address -> the function that it lies in.

    :param path: another file in the same form, for tests.
    """

    def __init__(self, path: Path = Path("/proc/kallsyms")) -> None:
        self._path = path

    @cached_property
    def _symbols(self) -> list[tuple[int, str]]:
        found = []
        try:
            with self._path.open() as lines:
                for line in lines:
                    address, kind, name = line.split(maxsplit=3)[:3]
                    if kind in "tTwW" and (number := int(address, 16)):
                        found.append((number, name))
        except OSError:
            return []
        return sorted(found)

    def name_of(self, address: int) -> str:
        """The function that holds the address; empty if that cannot be known."""
        at = bisect_right(self._symbols, address, key=lambda symbol: symbol[0])
        return self._symbols[at - 1][1] if at and address else ""
