"""What set-up installs for whom: `make trace` gets what the job needs, tests get all that they ask for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.programs import program
from ztprobe.paths import REPO_DIR

TESTS = Path(__file__).parents[1]
PYTHON = {"PYTHON": "/usr/bin/python3", "PATH": "/usr/bin:/bin"}


def setup_system(*words: str) -> subprocess.CompletedProcess[str]:
    command = [REPO_DIR / "tools/setup-system", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=PYTHON)


def provided(*groups: str) -> set[str]:
    """The programs that these groups of packages bring."""
    lines = setup_system("--list", *groups).stdout.splitlines()
    return {word for line in lines for word in line.partition("has_program")[2].split()}


def test_the_job_needs_no_package_of_the_tests_or_benchmarks() -> None:
    packages = [line.split()[0] for line in setup_system("--list", "job").stdout.splitlines()]
    assert sorted(packages) == [
        "dnsmasq-base", "ethtool", "haproxy", "iproute2", "iptables", "kmod", "nftables", "python3-bpfcc",
        "python3-venv", "tcpdump",
    ]  # fmt: skip


def test_setup_brings_every_program_that_a_test_asks_for() -> None:
    texts = [path.read_text() for path in TESTS.rglob("*.py")]
    asked = {name for text in texts for name in re.findall(r'\bprogram\("([^"$]+)"\)', text)}
    assert asked >= {"bpftool", "gnutls-cli", "gnutls-serv", "iperf3", "kubectl"}
    assert asked - provided("job", "tests") <= {"kubectl", "prometheus", "no-such-program"}  # tools/*


def test_a_group_that_is_none_is_refused() -> None:
    done = setup_system("jobs")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ztprobe: no group jobs\n"


def test_a_missing_program_fails_by_its_name() -> None:
    with pytest.raises(pytest.fail.Exception, match="no-such-program is missing: make setup-tests"):
        program("no-such-program")
