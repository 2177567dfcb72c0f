"""tools/fresh-machine where it cannot run. What it does elsewhere, CI shows: it runs there."""

from __future__ import annotations

import os
import subprocess

from tests.e2e.command import unprivileged
from ztprobe.paths import REPO_DIR


def test_without_root_one_line_says_so() -> None:
    prefix = unprivileged() if os.geteuid() == 0 else []
    command = [*prefix, REPO_DIR / "tools/fresh-machine", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines() == [
        "fresh-machine: needs root: it mounts, and makes network namespaces and control groups"
    ]
