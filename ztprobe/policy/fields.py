"""The fields of a document, each with its place, so that what is wrong is named by file, line and field.

Values are quoted in messages only where they are short scalars: whatever else stands in a file
is nobody's business. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ztprobe.documents.problem import shown
from ztprobe.documents.strict_yaml import Keys
from ztprobe.errors import UsageError

__all__ = ("IPNetwork", "Where", "in_words")

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def in_words(value: Any) -> str:
    """A value for a message: a short scalar as it is, of anything else what it is."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else shown(value)


@dataclass(frozen=True)
class Where:
    """A field of a document."""

    subject: str  # "NetworkPolicy fl/deny-all"
    keys: Keys = ()
    line_of: Callable[[Keys], str] | None = None  # keys -> "file:line"

    def __truediv__(self, name: str) -> Where:
        return Where(self.subject, (*self.keys, name), self.line_of)

    def __getitem__(self, number: int) -> Where:
        return Where(self.subject, (*self.keys, number), self.line_of)

    @property
    def path(self) -> str:
        """As ``spec.ingress[0].from``."""
        text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.keys)
        return text.removeprefix(".")

    def error(self, problem: str) -> UsageError:
        """An error that names the place: ``file:line: subject: field `path` problem``."""
        line = "" if self.line_of is None else f"{self.line_of(self.keys)}: "
        field = f"field `{self.path}` " if self.keys else ""
        return UsageError(f"{line}{self.subject}: {field}{problem}")

    def mapping(self, value: Any, known: Iterable[str] | None = None) -> dict[str, Any]:
        """A mapping, whose keys are all among those known (None: any text); nothing is an empty one.

        :raises UsageError: it is none, or has another key.
        """
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(f"is {in_words(value)}, expected a mapping")
        for key in value:
            if not isinstance(key, str):
                raise self.error(f"has the key {in_words(key)}, expected text")
            if known is not None and key not in known:
                raise (self / key).error("is not supported")
        return value

    def sequence(self, value: Any, most: int | None = None) -> list[Any]:
        """A list; nothing is an empty one.

        :raises UsageError: it is none, or longer than the API allows.
        """
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(f"is {in_words(value)}, expected a list")
        if most is not None and len(value) > most:
            raise self.error(f"has {len(value)} items, expected at most {most}")
        return value

    def text(self, value: Any) -> str:
        """Text of at least one character.

        :raises UsageError: it is none.
        """
        if not isinstance(value, str) or not value:
            raise self.error(f"is {in_words(value)}, expected text")
        return value

    def one_of(self, value: Any, words: tuple[str, ...]) -> str:
        """One of the words.

        :raises UsageError: it is none of them.
        """
        if value not in words or not isinstance(value, str):
            expected = " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} or {words[-1]}"
            raise self.error(f"is {in_words(value)}, expected {expected}")
        return value

    def number(self, value: Any, first: int, last: int) -> int:
        """A whole number in a range.

        :raises UsageError: it is none.
        """
        if isinstance(value, bool) or not isinstance(value, int) or not first <= value <= last:
            raise self.error(f"is {in_words(value)}, expected {first} to {last}")
        return value

    def network(self, value: Any) -> IPNetwork:
        """A CIDR; bits beyond its prefix are ignored, as Kubernetes does.

        :raises UsageError: it is none.
        """
        try:
            if not isinstance(value, str) or "/" not in value:
                raise ValueError(value)
            return ipaddress.ip_network(value, strict=False)
        except ValueError as error:
            problem = f"is {in_words(value)}, expected a CIDR as 10.0.0.0/8 or fd00::/8"
            raise self.error(problem) from error

    def labels(self, value: Any) -> dict[str, str]:
        """A mapping of text to text.

        :raises UsageError: it is none.
        """
        found = self.mapping(value)
        for key, label in found.items():
            if not isinstance(label, str):
                raise (self / key).error(f"is {in_words(label)}, expected text (in quotes)")
        return found
