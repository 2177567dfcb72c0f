"""JSON, strictly: each key once, finite numbers, text that can be written again, bounded depth.

Python's own reader keeps the last of two equal keys, takes NaN and Infinity, which are not JSON,
and makes an infinity of 1e999.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ztprobe.documents.problem import DocumentError, shown

__all__ = ("parse_json",)

_DEEPEST = 100
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s"{}\[\]:,]+')


def parse_json(text: str, *, not_finite_as_null: bool = False) -> Any:
    """The value of one JSON document.

    :param not_finite_as_null: take NaN and the infinities (which Python programs write) for null.
    :raises DocumentError: it is not JSON, or one of the above.
    """

    def constant(name: str) -> None:
        if not not_finite_as_null:
            raise DocumentError(f"{name} is no number that JSON knows")

    def number(digits: str) -> float | None:
        value = float(digits)
        if math.isinf(value):
            constant(shown(digits))
            return None
        return value

    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=constant, parse_float=number)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise DocumentError(f"is not JSON: {error.msg}", error.lineno) from error
    except _Twice as error:
        raise _where_twice(text, str(error)) from error
    except UnicodeEncodeError as error:
        raise DocumentError("has half of a surrogate pair in a text") from error
    except RecursionError as error:
        raise DocumentError("is nested too deeply") from error
    except DocumentError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise DocumentError(f"is not JSON that is read here: {error}") from error
    if _too_deep(value):
        raise DocumentError(f"is nested more than {_DEEPEST} deep")
    return value


class _Twice(ValueError):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Twice(key)
            seen.add(key)
    return found


def _too_deep(value: Any) -> bool:
    # Not by recursion, which would meet the very limit of Python's that is to be kept away from.
    level = [value]
    for _ in range(_DEEPEST):
        containers = [one for one in level if isinstance(one, dict | list)]
        level = [item for one in containers for item in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return False
    return any(isinstance(one, dict | list) for one in level)


def _where_twice(text: str, name: str) -> DocumentError:
    # The reader's hook knows no places; walking the tokens again finds the line.
    lines: list[dict[str, int]] = []
    before = ""
    at = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "{[":
            lines.append({})
        elif token in "}]" and lines:
            lines.pop()
        elif token == ":" and lines and before.startswith('"'):
            key, line = json.loads(before), text.count("\n", 0, at) + 1
            if key in lines[-1]:
                return DocumentError(f"{shown(key)} is given twice, on line {lines[-1][key]} too", line)
            lines[-1][key] = line
        before, at = token, match.start()
    return DocumentError(f"{shown(name)} is given twice")
