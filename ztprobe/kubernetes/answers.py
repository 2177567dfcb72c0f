"""What the Kubernetes API answered, checked before anybody looks into it. Pure.

An answer can come from anything that a kubeconfig points at: a proxy's login page, an API of another
age, somebody's joke. What the commands read of an object has its type here; what they do not read may
be anything. ``null`` is the same as absent, as everywhere in the API, and so is a missing ``spec``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ztprobe.documents.problem import DocumentError, shown
from ztprobe.documents.strict_json import parse_json
from ztprobe.printable import printable

__all__ = (
    "MOST_REFUSAL_BYTES",
    "ApiRefusal",
    "ApiVersion",
    "Object",
    "page_of",
    "refusal_of",
    "secret_of",
    "version_of",
)

Object = Mapping[str, Any]
ApiVersion = tuple[int, int]  # major and minor

_TEXTS = "a mapping of texts"
_Types = Mapping[str, Mapping[str, str]]
_METADATA = {
    "name": "text",
    "namespace": "text",
    "uid": "text",
    "labels": _TEXTS,
    "annotations": _TEXTS,
    "deletionTimestamp": "text",
}
# Of other kinds only the metadata is known here.
_TYPES: Mapping[str, _Types] = {
    "pods": {
        "spec": {"nodeName": "text", "hostNetwork": "true or false"},
        "status": {"phase": "text", "podIP": "text", "podIPs": "a list of addresses"},
    },
    "services": {"spec": {"clusterIP": "text", "selector": _TEXTS}},
}
# What an object cannot be without; all but pods are known by their name alone.
_REQUIRED = {"pods": ("name", "namespace", "uid")}
_LONGEST_MESSAGE = 500
_LONGEST_TYPE = 100
_LEADING_DIGITS = re.compile(r"\d+")
# Of a refusal's body; a Status, which is how the API says why, has some hundred.
MOST_REFUSAL_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class ApiRefusal:
    """An answer that is no success.

    :param status: HTTP's.
    :param message: why, as one line of bounded length.
    :param is_status: it is the API's own kind of answer, so that its status means what the API says.
    """

    status: int
    message: str
    is_status: bool


def page_of(body: bytes, kind: str) -> tuple[list[Object], str]:
    """The objects of one page of a list, and the token for the next page (empty: there is none).

    :param kind: pods, services, ... as in the API's paths.
    :raises DocumentError: it is no list of objects; says what was found.
    """
    try:
        answer = parse_json(body.decode())
    except UnicodeDecodeError as error:
        raise DocumentError("is not UTF-8 text") from error
    if not isinstance(answer, dict):
        raise DocumentError(f"is {_kind(answer)}, expected a list of objects")
    items, metadata = answer.get("items", ""), answer.get("metadata") or {}
    if not isinstance(items, list | None):
        raise DocumentError(f"items is {_kind(items) if 'items' in answer else 'missing'}, expected a list")
    more = metadata.get("continue") if isinstance(metadata, dict) else 0
    if not isinstance(more, str | None):
        raise DocumentError("metadata.continue is no text")
    found = _without_nulls(items or [])
    return [_checked(item, f"items[{number}]", kind) for number, item in enumerate(found)], more or ""


def secret_of(body: bytes) -> dict[str, bytes]:
    """What a Secret holds. :raises DocumentError: the answer is no Secret."""
    try:
        answer = parse_json(body.decode())
        return {
            name: base64.b64decode(text, validate=True) for name, text in (answer.get("data") or {}).items()
        }
    except (UnicodeDecodeError, AttributeError, TypeError, ValueError) as error:  # not what it holds
        raise DocumentError("is no Secret") from error


def version_of(body: bytes) -> tuple[ApiVersion, str]:
    """The version that an API server says of itself, and how it calls that.

    :raises DocumentError: the answer names none.
    """
    try:
        answer = parse_json(body.decode())
        # A vendor writes 29+.
        major, minor = (int(_LEADING_DIGITS.findall(answer[name])[0]) for name in ("major", "minor"))
        return (major, minor), _line(str(answer.get("gitVersion", "")), _LONGEST_TYPE)
    except (UnicodeDecodeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DocumentError("names no version") from error


def refusal_of(status: int, reason: str, content_type: str, body: bytes) -> ApiRefusal:
    """What an answer says that is no success; any server or proxy may have given it.

    :param reason: the words beside the status.
    :param body: at most one byte more than `MOST_REFUSAL_BYTES`; what is longer is not looked into.
    """
    message = _status_message(body) if len(body) <= MOST_REFUSAL_BYTES else ""
    if message:
        return ApiRefusal(status=status, message=_line(message, _LONGEST_MESSAGE), is_status=True)
    said = _line(reason, _LONGEST_MESSAGE) or "no reason given"
    kind = _line(content_type.partition(";")[0], _LONGEST_TYPE).lower()
    if kind == "text/plain" and (text := _line(body.decode(errors="replace"), _LONGEST_MESSAGE)):
        # The API's outermost layers answer so, for instance where HTTP is spoken to its HTTPS port.
        return ApiRefusal(status=status, message=text, is_status=False)
    found = kind or "a body without a type"
    if len(body) > MOST_REFUSAL_BYTES:
        found += f" of more than {MOST_REFUSAL_BYTES >> 10} KiB"
    if body:
        said += f" (with {found} instead of a Kubernetes Status: does a proxy or another server answer?)"
    return ApiRefusal(status=status, message=said, is_status=False)


def _status_message(body: bytes) -> str:
    try:
        answer = parse_json(body.decode())
    except ValueError:
        return ""
    message = answer.get("message") if isinstance(answer, dict) else None
    return message if isinstance(message, str) else ""


def _line(text: str, longest: int) -> str:
    return printable(" ".join(text.split()), longest)


def _checked(item: Any, where: str, kind: str) -> Object:
    if not isinstance(item, dict):
        raise DocumentError(f"{where} is {_kind(item)}, expected an object")
    parts: _Types = {"metadata": _METADATA, "spec": {}, "status": {}, **_TYPES.get(kind, {})}
    for part, fields in parts.items():
        found = item.setdefault(part, {})
        if not isinstance(found, dict):
            raise DocumentError(f"{where}.{part} is {_kind(found)}, expected a mapping")
        for key, expected in fields.items():
            if key in found and not _is(found[key], expected):
                raise DocumentError(f"{where}.{part}.{key} is {shown(found[key])}, expected {expected}")
    for key in _REQUIRED.get(kind, ("name",)):
        if not item["metadata"].get(key):
            raise DocumentError(f"{where}.metadata.{key} is missing")
    return item


def _is(value: Any, expected: str) -> bool:
    if expected == "text":
        return isinstance(value, str)
    if expected == "true or false":
        return isinstance(value, bool)
    if expected == _TEXTS:
        return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    return isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("ip", ""), str) for one in value
    )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null"}
    return names.get(type(value), "a number")
