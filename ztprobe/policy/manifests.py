"""YAML and JSON text as documents that know their lines, read strictly.

A key that stands twice is refused (YAML loaders take the last, so a reader and a cluster could
disagree), and so are nesting and aliases without end. Messages name file and line and never
quote the text around them. Pure: who reads the file is `ztprobe.cli`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from ztprobe.errors import UsageError
from ztprobe.policy.fields import Keys

__all__ = ("MOST_BYTES", "Document", "read_documents")

MOST_BYTES = 64 << 20  # of one file: the objects of a cluster with ten thousand pods fit
_MOST_DEPTH = 50
_MOST_NODES = 5_000_000
_KEY_CHARACTERS = 60

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Lines:
    # The nodes of a document, from which lines are known; of JSON made only when something is wrong.
    def __init__(self, node: yaml.Node | None, text: str = "") -> None:
        self._node = node
        self._text = text

    def line_of(self, keys: Keys) -> int:
        if self._node is None:
            try:
                self._node = yaml.compose(self._text, Loader=_Loader)
            except yaml.YAMLError:  # tabs, which JSON has and YAML has not
                self._text = ""
        if self._node is None:
            return 1
        node, line = self._node, self._node.start_mark.line + 1
        for key in keys:
            found = _child(node, key)
            if found is None:
                break
            line, node = found
        return line


@dataclass(frozen=True)
class Document:
    """One document of a file, or an item of a list in one."""

    data: Any
    file: str
    _lines: _Lines | None = field(repr=False, compare=False, default=None)
    _keys: Keys = ()

    def place(self, keys: Keys) -> str:
        """``file:line`` of a field, or of the innermost one around it that is there."""
        if self._lines is None:
            return self.file
        return f"{self.file}:{self._lines.line_of((*self._keys, *keys))}"

    def items(self) -> Iterator[Document]:
        """The documents in ``items`` of a List."""
        for number, data in enumerate(self.data["items"]):
            yield Document(data, self.file, self._lines, (*self._keys, "items", number))


def read_documents(text: str, file: str) -> list[Document]:
    """The documents of a file, empty ones left out.

    :raises UsageError: it is neither YAML nor JSON, a key stands twice, or it is too deep or too large.
    """
    if len(text) > MOST_BYTES:
        raise UsageError(f"{file}: expected at most {MOST_BYTES >> 20} MiB, found more")
    try:
        if (found := _as_json(text, file)) is not None:
            return [Document(found, file, _Lines(None, text))]
        return list(_documents(text, file))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        # Without what it quotes of the file.
        problem = re.sub(r"\s*'[^']{2,}'", "", getattr(error, "problem", None) or "something else")
        raise UsageError(f"{file}:{line}: expected YAML or JSON, found: {problem}") from error
    except ValueError as error:  # the number of 5,000 digits, or a date that does not exist
        raise UsageError(f"{file}: expected YAML or JSON, found a number beyond all limits") from error
    except RecursionError as error:
        raise UsageError(f"{file}: expected YAML or JSON, found a nesting that is too deep") from error


def _too_deep(file: str, line: int) -> UsageError:
    place = f"{file}:{line}"
    return UsageError(f"{place}: expected YAML or JSON, found a nesting that is too deep, or no end")


def _check_depth(text: str, file: str) -> None:
    # Before nodes are made of it, which the C library does by recursion, until its stack is full.
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_DEPTH:
                raise _too_deep(file, event.start_mark.line + 1 if event.start_mark else 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _documents(text: str, file: str) -> Iterator[Document]:
    _check_depth(text, file)
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            _check(node, file)
            data = _without_dates(loader, node)
            if data is not None:
                yield Document(data, file, _Lines(node))
    finally:
        loader.dispose()


def _without_dates(loader: Any, node: yaml.Node) -> Any:
    # Kubernetes reads an unquoted date as text. Nodes are shared by aliases, so the tag is changed in place.
    seen: set[int] = set()
    stack = [node]
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if one.tag == "tag:yaml.org,2002:timestamp":
            one.tag = "tag:yaml.org,2002:str"
        stack += _children(one)
    return loader.construct_document(node)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check(root: yaml.Node, file: str) -> None:
    # Every node counts as often as aliases repeat it: that is how often readers will meet it.
    count = 0
    stack = [(root, 1)]
    while stack:
        node, depth = stack.pop()
        count += 1
        if depth > _MOST_DEPTH or count > _MOST_NODES:
            raise _too_deep(file, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            keys: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if (key.tag, key.value) in keys:
                        line = key.start_mark.line + 1
                        raise UsageError(
                            f"{file}:{line}: the key `{key.value[:_KEY_CHARACTERS]}` stands twice"
                        )
                    keys.add((key.tag, key.value))
        stack += [(child, depth + 1) for child in _children(node)]


def _child(node: yaml.Node, key: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(key, int):
        if isinstance(node, yaml.SequenceNode) and key < len(node.value):
            return node.value[key].start_mark.line + 1, node.value[key]
        return None
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                return name.start_mark.line + 1, value
    return None


def _as_json(text: str, file: str) -> Any:
    # JSON is YAML, but read faster, and it may have tabs.
    if not text.lstrip().startswith("{"):
        return None

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            key = next(key for number, key in enumerate(keys) if key in keys[:number])
            line = 1 + text[: text.rfind(json.dumps(key))].count("\n")
            raise UsageError(f"{file}:{line}: the key `{key[:_KEY_CHARACTERS]}` stands twice")
        return found

    try:
        found = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise
    except ValueError:
        return None  # YAML in braces, or neither
    _check_json_depth(found, file)
    return found


def _check_json_depth(value: Any, file: str) -> None:
    stack = [(value, 1)]
    while stack:
        one, depth = stack.pop()
        if depth > _MOST_DEPTH:
            raise _too_deep(file, 1)
        if isinstance(one, dict | list):
            stack += [(inner, depth + 1) for inner in (one.values() if isinstance(one, dict) else one)]
