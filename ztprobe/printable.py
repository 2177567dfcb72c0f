"""Text that others wrote, made fit to be shown: on a terminal, in a page, in a figure, in a log.

Names, descriptions, keys, logs and answers of other programs may hold anything: escapes that move the
cursor or rename the window, marks that turn the reading direction round, characters that XML does not
have, or 300 megabytes. Whatever shows text passes it through here: what has no shape of its own is
written as Python would write it (``\\x1b``), and the middle of what is too long is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ("LONGEST", "escape_json", "printable", "printable_lines", "printable_tree")

LONGEST = 2000  # characters of one line or value
_MOST_LINES = 200
# Everything that `str.isprintable` may refuse, as a first look that is quick for long text.
_SUSPECT = re.compile("[^ -~]")


def printable(text: str, longest: int = LONGEST) -> str:
    """``text`` as one line without control characters, in at most ``longest`` characters and a remark."""
    if len(text) > longest:
        head, tail = text[: longest * 2 // 3], text[-(longest // 3) :]
        left_out = len(text) - len(head) - len(tail)
        text = f"{head} … {left_out:,} characters left out … {tail}"
    return text if text.isprintable() else _SUSPECT.sub(_shown, text)


def printable_lines(text: str) -> str:
    """The same for text of several lines, which stay lines."""
    if text.isascii() and text.isprintable() and len(text) <= LONGEST:
        return text
    lines = text.split("\n", _MOST_LINES)
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES] = f"… {lines[_MOST_LINES].count(chr(10)) + 1:,} lines left out …"
    return "\n".join(map(printable, lines))


def printable_tree(value: Any) -> Any:
    """The same for every text in plain data (as JSON has it), keys included."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable_tree(key): printable_tree(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable_tree(each) for each in value]
    return value


def escape_json(text: str) -> str:
    """JSON whose strings may hold anything, with what cannot be shown written as JSON's own escapes."""
    return _SUSPECT.sub(_json_escape, text)


def _shown(match: re.Match[str]) -> str:
    character = match[0]
    if character.isprintable():
        return character
    if character.isspace() and character in "\t\u00a0\u2007\u2009\u202f\u3000":
        return " "
    return character.encode("unicode_escape").decode()


def _json_escape(match: re.Match[str]) -> str:
    character = match[0]
    if character == "\n" or character.isprintable():
        return character
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
