"""What the shell is offered, asked as bash, zsh and fish ask."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ztprobe.cli.entry import ztprobe
from ztprobe.profile.model import profile_names
from ztprobe.validate.scenarios.catalogue import SCENARIOS


def offered(*words: str) -> list[str]:
    """For the last of the words, as bash asks."""
    done = subprocess.run(
        [sys.executable, "-m", "ztprobe"],
        env={
            **os.environ,
            "_ZTPROBE_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["ztprobe", *words]),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ztprobe"],
        env={**os.environ, "_ZTPROBE_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"_ZTPROBE_COMPLETE={shell}_complete" in done.stdout


def test_commands_and_options_are_offered() -> None:
    assert set(offered("")) == set(ztprobe.commands)
    assert "--experiment" in offered("trace", "--ex")


def test_experiments_profiles_and_scenarios_are_offered() -> None:
    assert offered("trace", "--experiment", "net2-") == [f"net2-sec{level}" for level in range(4)]
    assert "net2-sec3-noniid" in offered("trace", "--experiment", "net2-sec3")
    assert offered("profile", "show", "") == profile_names()
    assert offered("profile", "apply", "net2") == ["net2", "net2a"]
    assert set(offered("validate", "--scenario", "")) == {scenario.name for scenario in SCENARIOS}


def test_a_shell_that_bash_does_not_know_is_one_code() -> None:
    environment = {**os.environ, "_ZTPROBE_COMPLETE": "tcsh_complete"}
    assert subprocess.run([sys.executable, "-m", "ztprobe"], env=environment, check=False).returncode == 1
