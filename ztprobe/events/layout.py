"""The structs of ``ebpf/events.h``, read from that file: numpy types, and what each member is.

One definition for both sides, so that they cannot drift apart; the comments behind the members are what
saved tables and docs/events.md say of their columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

import numpy as np

from ztprobe.paths import EBPF_DIR

__all__ = ("Struct", "dtype_of", "enums", "plain_structs", "structs")

_PREFIX = re.compile(r"^#define EVENT_PREFIX\s*\\\n((?:.*\\\n)*.*\n)", re.MULTILINE)
_STRUCT = re.compile(r"(?:/\*((?:(?!\*/).)*)\*/\n)?^struct (\w+) \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_ENUM = re.compile(r"^enum (\w+) \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_MEMBER = re.compile(r"^\s*u(8|16|32|64)\s+(\w+)(?:\[(\d+)\])?;(?:\s*/\*(.*?)\*/)?", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Struct:
    """One struct: its type and its comments."""

    dtype: np.dtype[np.void]
    description: str
    members: Mapping[str, str] = field(default_factory=dict)  # name -> comment


def _plain(comment: str | None) -> str:
    """A comment without its line breaks and asterisks."""
    return re.sub(r"\s+", " ", re.sub(r"\n\s*\*", " ", comment or "")).strip()


@cache
def structs() -> Mapping[str, Struct]:
    """Name -> struct, in the file's order.

    :raises ValueError: a struct does not begin with what every event begins with.
    """
    text = (EBPF_DIR / "events.h").read_text()
    match = _PREFIX.search(text)
    if match is None:
        raise ValueError("ebpf/events.h: no EVENT_PREFIX")
    prefix = match[1].replace("\\\n", "\n")
    found = {}
    for comment, name, body in _STRUCT.findall(text[match.end() :]):
        if not body.lstrip().startswith("EVENT_PREFIX\n"):
            raise ValueError(f"ebpf/events.h: struct {name} does not begin with EVENT_PREFIX")
        members = _MEMBER.findall(body.replace("EVENT_PREFIX\n", prefix, 1))
        comments = {member: _plain(said) for _, member, _, said in members}
        found[name] = Struct(_dtype(members), _plain(comment), MappingProxyType(comments))
    return MappingProxyType(found)


def _dtype(members: Iterable[tuple[str, str, str, str]]) -> np.dtype[np.void]:
    return np.dtype(
        [(name, f"V{length}" if length else f"<u{int(bits) // 8}") for bits, name, length, _ in members]
    )


@cache
def plain_structs(file: str) -> Mapping[str, np.dtype[np.void]]:
    """Name -> the numpy type of each struct of a file that is no event of a run's."""
    text = (EBPF_DIR / file).read_text()
    return MappingProxyType({name: _dtype(_MEMBER.findall(body)) for _, name, body in _STRUCT.findall(text)})


@cache
def enums() -> Mapping[str, Mapping[str, int]]:
    """Enum -> its members as saved tables spell them (``HOOK_ETH`` is ``eth``) -> number."""
    found = {}
    for name, body in _ENUM.findall((EBPF_DIR / "events.h").read_text()):
        members = re.findall(r"^\s*[A-Z]+_(\w+) = (\d+),", body, re.MULTILINE)
        found[name] = MappingProxyType({member.lower(): int(number) for member, number in members})
    return MappingProxyType(found)


def dtype_of(struct: str) -> np.dtype[np.void]:
    """The numpy type of a struct of ``events.h``; its size is the struct's size."""
    return structs()[struct].dtype
