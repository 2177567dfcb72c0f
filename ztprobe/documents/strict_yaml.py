"""YAML, strictly: each key once, scalars as the reader of that kind of file means them, within limits.

YAML's own loaders keep the last of two equal keys, and read what version 1.1 of the language says:
``on`` is true, ``010`` is eight and ``1:20`` is eighty. Here a `Scalars` says what a plain word is.
`kustomize_scalar` reads words as `kubectl kustomize` does (go-yaml v3): ``on`` is text, ``0440`` is octal.
`kubectl_scalar` reads them as `kubectl apply -f` does, which keeps version 1.1's words for true and false: to
it, a label that is written ``on`` or ``y`` is no text. `decimal_scalar` is for profiles: numbers are decimal,
as people write them, and everything else is text, which the schema then refuses where a number belongs.

The document is built from the parser's events and not by its composer, so that depth, values
and what aliases expand to are counted while reading: 340 bytes of aliases to aliases can mean a
gigabyte. Keys are text, as in JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from ztprobe.documents.problem import DocumentError, shown

__all__ = (
    "Keys",
    "Parsed",
    "Scalars",
    "decimal",
    "decimal_scalar",
    "kubectl_scalar",
    "kustomize_scalar",
    "parse_yaml",
)

Keys = tuple[str | int, ...]
Scalars = Callable[[str], Any]

_DEEPEST = 50
_MOST_VALUES = 500_000
_MOST_CHARACTERS = 32 << 20  # of all values, aliases expanded
_TAG = "tag:yaml.org,2002:"
_TAGGED: Mapping[str, tuple[type, ...]] = {
    "null": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
}
_NULLS = ("", "~", "null", "Null", "NULL")
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_TRUE_1_1 = ("y", "Y", "yes", "Yes", "YES", "on", "On", "ON")
_FALSE_1_1 = ("n", "N", "no", "No", "NO", "off", "Off", "OFF")
_GO_INTEGER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_GO_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_DECIMAL = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_LONGEST_NUMBER = 400  # digits
_LARGEST = 1e308  # beyond it a float64 has infinity alone


@dataclass(frozen=True)
class Parsed:
    """One document.

    ``lines`` has the line of every key and item, counted from 1 (of what an alias stands for: none).
    """

    value: Any
    lines: Mapping[Keys, int]

    def line(self, keys: Keys) -> int:
        """The line of a key, or of the closest one around it."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 1)


def kustomize_scalar(word: str) -> Any:
    """A plain word as go-yaml v3 reads it."""
    if word in _NULLS:
        return None
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    if word[0] in "+-.0123456789":
        plain = word.replace("_", "")
        is_integer = len(plain) <= _LONGEST_NUMBER and _GO_INTEGER.fullmatch(plain)
        if is_integer and -(2**63) <= (integer := _go_integer(plain)) < 2**64:
            return integer
        if _GO_FLOAT.fullmatch(plain) and math.isfinite(value := float(plain)):
            return value
    return word


def _go_integer(digits: str) -> int:
    bare = digits.lstrip("+-")
    bases = {"x": 16, "b": 2, "o": 8}
    base = bases.get(bare[1:2].lower(), 8) if bare[0] == "0" and len(bare) > 1 else 10
    value = int(bare[2:] if bare[1:2].lower() in bases else bare, base)
    return -value if digits[0] == "-" else value


def kubectl_scalar(word: str) -> Any:
    """A plain word as kubectl reads it; what it then writes as JSON has one number for 1e3 and 1000."""
    if word in _TRUE_1_1 or word in _FALSE_1_1:
        return word in _TRUE_1_1
    return kustomize_scalar(word)


def decimal_scalar(word: str) -> Any:
    """A plain word of a profile: a decimal number, true, false, nothing, or text."""
    if word in _NULLS:
        return None
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    number = decimal(word)
    return word if number is None else number


def decimal(word: str) -> int | float | None:
    """A number as people write it (10, -0.5, 1e2); None: it is none (010, 0x50, 1:20, 1_0, nan)."""
    if len(word) > _LONGEST_NUMBER or not _DECIMAL.fullmatch(word):
        return None
    value = int(word) if word.lstrip("+-").isdigit() else float(word)
    return value if abs(value) < _LARGEST else None


def parse_yaml(
    text: str,
    scalars: Scalars,
    *,
    most_values: int = _MOST_VALUES,
    most_characters: int = _MOST_CHARACTERS,
) -> list[Parsed]:
    """All documents of a YAML text; an empty one has the value None.

    :param most_values: that one document holds, aliases expanded; so `most_characters`.

    :raises DocumentError: it is not YAML, has a key twice, or goes beyond a limit; says where.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's parser is 10 times as fast
    try:
        events = yaml.parse(text, Loader=loader)
        return list(_documents(events, lambda: _Builder(scalars, most_values, most_characters)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "something else"
        raise DocumentError(f"is not YAML: {problem}", mark.line + 1 if mark is not None else 1) from error
    except yaml.reader.ReaderError as error:
        where = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 1
        raise DocumentError(f"is not YAML: {error.reason}", where) from error
    except yaml.YAMLError as error:
        raise DocumentError(f"is not YAML: {shown(str(error))}", 1) from error


def _documents(events: Iterator[Any], builder: Callable[[], _Builder]) -> Iterator[Parsed]:
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            yield builder().build(events)


@dataclass
class _Open:
    # A mapping or list that is being read.
    value: Any
    path: Keys
    line: int
    anchor: str | None
    before: tuple[int, int]  # values and characters when it began
    key: str | None = None  # of a mapping: read, and waiting for its value
    is_merge: bool = False  # that key is <<
    merges: list[Any] = field(default_factory=list)
    depth: int = 1  # levels of mappings and lists, with its own


class _Anchored(NamedTuple):
    value: Any
    values: int
    characters: int
    depth: int


class _Builder:
    # One document.

    def __init__(self, scalars: Scalars, most_values: int, most_characters: int) -> None:
        self._scalars = scalars
        self._most_values, self._most_characters = most_values, most_characters
        self._stack: list[_Open] = []
        self._lines: dict[Keys, int] = {}
        self._anchors: dict[str, _Anchored] = {}
        self._values = self._characters = 0
        self._root: Any = None

    def build(self, events: Iterator[Any]) -> Parsed:
        for event in events:
            if isinstance(event, yaml.DocumentEndEvent):
                break
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):
                self._alias(str(event.anchor), line)
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event, line)
            elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                self._begin(event, line)
            else:
                self._end()
        return Parsed(self._root, self._lines)

    def _count(self, values: int, characters: int, line: int) -> None:
        self._values += values
        self._characters += characters
        if self._values > self._most_values:
            raise DocumentError(f"holds more than {self._most_values} values (aliases expanded)", line)
        if self._characters > self._most_characters:
            most = f"{self._most_characters >> 20} MiB"
            raise DocumentError(f"holds more than {most} of text (aliases expanded)", line)

    def _scalar(self, event: Any, line: int) -> None:
        text: str = event.value
        self._count(1, len(text), line)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DocumentError("has half of a surrogate pair in a text", line) from error
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            self._key(top, text, line, is_merge=text == "<<" and event.implicit[0])
            return
        value = self._read(event, text, line)
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, 1, len(text), 0)
        self._put(value, line)

    def _read(self, event: Any, text: str, line: int) -> Any:
        if event.tag in (None, "!"):
            return self._scalars(text) if event.tag is None and event.implicit[0] else text
        kind = str(event.tag).removeprefix(_TAG)
        if kind == "str":
            return text
        value = self._scalars(text)
        if kind not in _TAGGED or not isinstance(value, _TAGGED[kind]):
            raise DocumentError("a tag that is not understood here", line)
        return value

    def _key(self, top: _Open, text: str, line: int, *, is_merge: bool) -> None:
        top.key, top.is_merge = text, is_merge
        here = (*top.path, text)
        if is_merge:
            return
        if here in self._lines:
            raise DocumentError(f"key {shown(text)} is given twice, on line {self._lines[here]} too", line)
        self._lines[here] = line

    def _begin(self, event: Any, line: int) -> None:
        self._count(1, 0, line)
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            raise DocumentError(f"a {'mapping' if is_mapping else 'list'} as a key, expected text", line)
        if event.tag not in (None, "!", _TAG + ("map" if is_mapping else "seq")):
            raise DocumentError("a tag that is not understood here", line)
        if len(self._stack) >= _DEEPEST:
            raise DocumentError(f"is nested more than {_DEEPEST} deep", line)
        path: Keys = ()
        if top is not None:
            path = (*top.path, top.key if isinstance(top.value, dict) else len(top.value))  # type: ignore[arg-type]
        if event.anchor is not None:
            self._anchors.pop(event.anchor, None)
        value: Any = {} if is_mapping else []
        before = (self._values, self._characters)
        self._lines.setdefault(path, line)
        self._stack.append(_Open(value, path, line, event.anchor, before))

    def _end(self) -> None:
        done = self._stack.pop()
        for merged in done.merges:
            for key, value in merged.items():
                done.value.setdefault(key, value)
        if done.anchor is not None:
            size = self._values - done.before[0] + 1, self._characters - done.before[1]
            self._anchors[done.anchor] = _Anchored(done.value, *size, done.depth)
        self._put(done.value, done.line, done.depth)

    def _alias(self, name: str, line: int) -> None:
        if name not in self._anchors:
            raise DocumentError("an alias that stands for nothing before it, or for itself", line)
        value, values, characters, depth = self._anchors[name]
        self._count(values, characters, line)
        if len(self._stack) + depth > _DEEPEST:
            raise DocumentError(f"is nested more than {_DEEPEST} deep (aliases expanded)", line)
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            if not isinstance(value, str):
                raise DocumentError("an alias as a key stands for no text", line)
            self._key(top, value, line, is_merge=False)
            return
        self._put(_copied(value), line, depth)

    def _put(self, value: Any, line: int, depth: int = 0) -> None:
        if not self._stack:
            self._lines.setdefault((), line)
            self._root = value
            return
        top = self._stack[-1]
        top.depth = max(top.depth, depth + 1)
        if isinstance(top.value, list):
            self._lines.setdefault((*top.path, len(top.value)), line)
            top.value.append(value)
            return
        key, top.key = top.key, None
        if top.is_merge:
            mappings = value if isinstance(value, list) else [value]
            if not all(isinstance(one, dict) for one in mappings):
                raise DocumentError("<< merges mappings alone", line)
            top.merges += mappings
        else:
            top.value[str(key)] = value


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value
