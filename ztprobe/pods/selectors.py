"""Kubernetes label selectors, in the syntax of ``kubectl --selector``.

``app=fl-client``, ``app==fl-client``, ``app!=x``, ``app in (a,b)``, ``app notin (a,b)``,
``app``, ``!app``, any number of them with commas, all of which must hold. As in Kubernetes,
``!=`` and ``notin`` also match what lacks the label, and the empty selector matches
everything. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ztprobe.errors import UsageError
from ztprobe.label_selectors import LabelSelector, Requirement

__all__ = ("Selector", "parse_selector")

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_KEY = rf"(?:[a-z0-9](?:[a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_NAME}"
_SYNTAX = "expected like app=fl-client, app!=x, 'app in (a,b)', 'app notin (a,b)', app or '!app'"
_FORMS = (
    (re.compile(rf"!\s*(?P<key>{_KEY})"), "DoesNotExist"),
    (re.compile(rf"(?P<key>{_KEY})\s+in\s*\((?P<set>[^()]*)\)"), "In"),
    (re.compile(rf"(?P<key>{_KEY})\s+notin\s*\((?P<set>[^()]*)\)"), "NotIn"),
    (re.compile(rf"(?P<key>{_KEY})\s*!=\s*(?P<value>{_NAME}|)"), "NotIn"),
    (re.compile(rf"(?P<key>{_KEY})\s*==?\s*(?P<value>{_NAME}|)"), "In"),
    (re.compile(rf"(?P<key>{_KEY})"), "Exists"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selector(LabelSelector):
    """A label selector, with the text that it was written as."""

    text: str


def parse_selector(text: str) -> Selector:
    """Parse a selector.

    :raises UsageError: it is none; says which part and what was expected.
    """
    parts = [part.strip() for part in _split(text)]
    if parts == [""]:
        parts = []
    return Selector(text=text, requirements=tuple(_requirement(part, text) for part in parts))


def _split(text: str) -> list[str]:
    # At the commas that stand outside parentheses.
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _requirement(part: str, text: str) -> Requirement:
    for form, operator in _FORMS:
        if (match := form.fullmatch(part)) is None:
            continue
        found = match.groupdict()
        values = [found["value"]] if "value" in found else []
        if "set" in found:
            values = [value.strip() for value in found["set"].split(",")]
            if any(value and not re.fullmatch(_NAME, value) for value in values) or values == [""]:
                break
        return Requirement(key=found["key"], operator=operator, values=tuple(sorted(set(values))))
    raise UsageError(f"selector {text!r}: {_SYNTAX}, found {part!r}")
