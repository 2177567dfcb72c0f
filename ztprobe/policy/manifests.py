"""Files of Kubernetes objects as documents that know their lines.

They are read by `ztprobe.documents`, within limits that all objects of a large cluster keep. JSON is YAML,
too, but read faster as what it is; its lines are looked for when something is wrong. Pure: who
reads the file is `ztprobe.cli`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_json import parse_json
from ztprobe.documents.strict_yaml import Keys, Parsed, kubectl_scalar, parse_yaml
from ztprobe.errors import UsageError

__all__ = ("MOST_BYTES", "Document", "read_documents")

MOST_BYTES = 64 << 20  # of one file: the objects of a cluster with ten thousand pods fit
_MOST_VALUES = 5_000_000


@dataclass(frozen=True)
class Document:
    """One document of a file, or an item of a list in one."""

    data: Any
    file: str
    _line_of: Callable[[Keys], int] | None = field(repr=False, compare=False, default=None)
    _keys: Keys = ()

    def place(self, keys: Keys) -> str:
        """``file:line`` of a field, or of the innermost one around it that is there."""
        if self._line_of is None:
            return self.file
        return f"{self.file}:{self._line_of((*self._keys, *keys))}"

    def items(self) -> Iterator[Document]:
        """The documents in ``items`` of a List."""
        for number, data in enumerate(self.data["items"]):
            yield Document(data, self.file, self._line_of, (*self._keys, "items", number))


def read_documents(text: str, file: str) -> list[Document]:
    """The documents of a file, empty ones left out.

    :raises UsageError: it is neither YAML nor JSON, a key stands twice, or it is too deep or too large.
    """
    if len(text) > MOST_BYTES:
        raise UsageError(f"{file}: expected at most {MOST_BYTES >> 20} MiB, found more")
    if text.lstrip().startswith("{"):
        # What is not JSON may be YAML in braces; of what is neither, that reader knows the line.
        with contextlib.suppress(DocumentError):
            return [Document(parse_json(text), file, _lines_of_json(text))]
    try:
        parsed = _parse(text)
    except DocumentError as error:
        raise UsageError(error.at(file)) from error
    return [Document(one.value, file, one.line) for one in parsed if one.value is not None]


def _parse(text: str) -> list[Parsed]:
    return parse_yaml(text, kubectl_scalar, most_values=_MOST_VALUES, most_characters=MOST_BYTES)


def _lines_of_json(text: str) -> Callable[[Keys], int]:
    @functools.cache
    def parsed() -> Parsed | None:
        try:
            return _parse(text)[0]
        except DocumentError:  # nested deeper than YAML may be
            return None

    def line_of(keys: Keys) -> int:
        found = parsed()
        return 1 if found is None else found.line(keys)

    return line_of
