"""What .ci/run prints at its end, and what it takes for a failure."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from ztprobe.paths import REPO_DIR

EXPECTED = tomllib.loads((REPO_DIR / "tests/expected_skips.toml").read_text())["skip"]
TESTS = """
import pytest

{skips}
def test_passes():
    pass

@pytest.fixture
def torn():
    yield
    assert {good}

def test_fails(torn):
    assert {good}
"""


SKIPS = "def test_skips_{number}():\n    pytest.skip({reason!r})\n"


def results(
    directory: Path, *, skips: int = 0, reason: str = "", good: bool = True, name: str = "here"
) -> None:
    """pytest's own file of a run in a tree with these tests."""
    tree = directory / "tree"
    (tree / "tests/kernel").mkdir(parents=True, exist_ok=True)
    skipping = "".join(SKIPS.format(number=number, reason=reason) for number in range(skips))
    (tree / "tests/kernel/test_it.py").write_text(TESTS.format(skips=skipping, good=good))
    file = directory / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={file}", "tests"]
    subprocess.run(command, cwd=tree, env={}, capture_output=True, check=False)
    assert file.exists()


def summary(directory: Path, *places: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPO_DIR / "tools/test-summary", str(directory), *places]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_expected_skips_pass_and_one_more_fails(tmp_path: Path) -> None:
    for skip in EXPECTED:
        reason, most = skip["reason"], skip["at_most"]
        results(tmp_path, skips=most, reason=reason)
        done = summary(tmp_path)
        assert done.returncode == 0, done.stdout
        results(tmp_path, skips=most + 1, reason=reason)
        done = summary(tmp_path)
        assert done.returncode == 1
        assert f"{most + 1:>5} ({most}) here: {reason}" in done.stdout.splitlines()


def test_a_reason_that_nobody_expects_fails(tmp_path: Path) -> None:
    results(tmp_path, skips=2, reason="iperf3 is not installed")
    done = summary(tmp_path)
    assert done.returncode == 1
    assert "ci: here: 2 tests skipped and 0 expected: iperf3 is not installed" in done.stdout


def test_what_failed_once_is_named_and_what_failed_twice_fails(tmp_path: Path) -> None:
    results(tmp_path, good=False)
    done = summary(tmp_path)
    assert done.returncode == 1
    assert "ci: here: tests/kernel/test_it.py::test_fails failed" in done.stdout
    assert "\ntotal: 1 passed, 1 failed, 0 skipped\n" in done.stdout
    results(tmp_path, good=True, name="here.again")
    done = summary(tmp_path, "here", "vm")
    assert done.returncode == 0
    assert "vm: NOT run" in done.stdout.splitlines()
    assert "here: NOT run" not in done.stdout
    once = "failed at first and passed in a second run: here: tests/kernel/test_it.py::test_fails"
    assert once in done.stdout.splitlines()
    assert "\ntotal: 2 passed, 0 failed, 0 skipped\n" in done.stdout


def test_no_results_and_no_tests_fail(tmp_path: Path) -> None:
    assert summary(tmp_path).returncode == 1
    (tmp_path / "here.xml").write_text("<testsuites><testsuite tests='0'/></testsuites>")
    assert summary(tmp_path).returncode == 1
