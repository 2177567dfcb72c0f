"""Label selectors mean what they mean to kubectl."""

from __future__ import annotations

import pytest

from ztprobe.errors import UsageError
from ztprobe.pods.selectors import parse_selector

CLIENT = {"app": "fl-client", "tier": "edge"}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("app=fl-client", True),
        ("app==fl-client", True),
        ("app = fl-client , tier=edge", True),
        ("app=fl-client,tier=core", False),
        ("app!=fl-server", True),
        ("app!=fl-client", False),
        ("zone!=a", True),  # as in Kubernetes: lacking the label is another value
        ("app in (fl-client,fl-server)", True),
        ("app in (fl-server)", False),
        ("app notin (fl-server, other)", True),
        ("app notin (fl-client)", False),
        ("zone notin (a)", True),
        ("tier", True),
        ("zone", False),
        ("!zone", True),
        ("!tier", False),
        ("zone=", False),
        ("app in (fl-client),!zone,tier notin (core)", True),
        ("kubernetes.io/name=x", False),
    ],
)
def test_selectors_match_as_kubectl_does(text: str, matches: bool) -> None:
    assert parse_selector(text).matches(CLIENT) is matches


@pytest.mark.parametrize(
    "text",
    [
        "app=",
        "app=a=b",
        "=x",
        "app in fl-client",
        "app in ()",
        "app in (a",
        "a b",
        "app=a,,b=c",
        "-x=y",
        "app in (a b)",
    ],
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    if text == "app=":  # an empty value is a value
        assert parse_selector(text).matches({"app": ""})
        return
    with pytest.raises(UsageError, match="expected like app=fl-client") as raised:
        parse_selector(text)
    assert "\n" not in str(raised.value)
