"""Times as people type them."""

from __future__ import annotations

import pytest

from ztprobe.cli import main
from ztprobe.durations import duration_s
from ztprobe.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("90s", 90),
        ("1.5m", 90),
        ("1h", 3600),
        ("500ms", 0.5),
        ("1h30m", 5400),
        (" 10m ", 600),
        ("7d", 604_800),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert duration_s("--for", text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "0s", "-1s", "-5m", "1h-5m", "10 days", "10 m", "1w", "m", "1e3", "nan", "inf"),
        *("31d", "1h30"),
    ],
)
def test_what_is_no_time(text: str) -> None:
    said = r"^--for .*: expected a time such as 90s, 10m or 1h30m, 30 days at most$"
    with pytest.raises(UsageError, match=said):
        duration_s("--for", text)


def test_the_longest_may_be_shorter() -> None:
    assert duration_s("--for", "7d", longest_days=7) == 604_800
    with pytest.raises(UsageError, match="7 days at most"):
        duration_s("--for", "8d", longest_days=7)


@pytest.mark.parametrize("words", [["drops", "--for", "soon"], ["diagnose", "--live", "--for", "soon"]])
def test_commands_say_so_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--for soon: expected a time such as 90s, 10m or 1h30m, 1 days at most" in line
