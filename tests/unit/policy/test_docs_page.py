"""docs/policy.md shows what the commands print."""

from __future__ import annotations

import re

import pytest

from ztprobe.cli import main
from ztprobe.paths import REPO_DIR

PAGE = (REPO_DIR / "docs/policy.md").read_text()
SHOWN = re.findall(r"^```console\n\$ ztprobe (policy [^\n]*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("words", "output"), SHOWN, ids=lambda text: text.split()[1])
def test_the_page_shows_what_is_printed(words: str, output: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir(REPO_DIR)
    assert main(words.split()) in (0, 3)
    assert capsys.readouterr() == (output, "")


def test_every_command_is_shown() -> None:
    assert {words.split()[1] for words, _ in SHOWN} == {"explain", "matrix", "check", "simulate"}
