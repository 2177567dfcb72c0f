"""Layouts of cgroups: a directory that looks like each of the three, and limits on the one that is here."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ztprobe.errors import PreflightError
from ztprobe.runtime.local import cgroups

V1 = "cgroup {0}/memory cgroup rw,memory 0 0\ncgroup {0}/cpu cgroup rw,cpu,cpuacct 0 0\n"
V2 = "cgroup2 {0}/{1} cgroup2 rw,nsdelegate 0 0\n"
OTHERS = "proc /proc proc rw 0 0\ntmpfs {0} tmpfs rw 0 0\ncgroup {0}/systemd cgroup rw,name=systemd 0 0\n"


def mounts(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mounts"
    file.write_text(OTHERS.format(tmp_path) + text)
    return file


@pytest.mark.parametrize(
    ("text", "version", "roots"),
    [
        (V2.format("{0}", "."), "v2", ["."]),
        (V1 + V2.format("{0}", "unified"), "v1+v2", ["unified", "memory", "cpu"]),
        (V1, "v1", ["memory", "cpu"]),
    ],
)
def test_each_layout_is_recognised(tmp_path: Path, text: str, version: str, roots: list[str]) -> None:
    found = cgroups.detect(mounts(tmp_path, text.format(tmp_path)))
    assert found.version == version
    assert [root.resolve() for root in found.roots] == [(tmp_path / root).resolve() for root in roots]


def test_no_layout_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="mount -t cgroup2"):
        cgroups.detect(mounts(tmp_path, ""))


def test_on_version_2_alone_missing_controllers_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory pids\n")
    hierarchies = cgroups.Hierarchies(unified=tmp_path, memory_v1=None, cpu_v1=None)
    tree = cgroups.Tree(hierarchies, "ztp-x")
    assert tree.controllers_to_enable() == (tmp_path / "cgroup.subtree_control", ["cpu"])
    assert tree.unavailable == set()
    (tmp_path / "cgroup.controllers").write_text("cpu pids\n")
    assert tree.controllers_to_enable() == (tmp_path / "cgroup.subtree_control", ["cpu"])
    assert tree.unavailable == {"memory"}


_HOLDS = "import sys; sys.stdin.read(1); held = b'x' * (80 << 20)"
_BURNS = "import sys, time; sys.stdin.read(1)\nwhile time.process_time() < 0.2: pass"


def test_limits_hold_on_this_machine_s_layout() -> None:
    """Under tools/test-vm that is version 2 alone, and nothing is mounted beside it."""
    hierarchies = cgroups.detect()
    if os.environ.get("ZTPROBE_IN_VM"):
        assert hierarchies.version == "v2"
    tree = cgroups.Tree(hierarchies, f"ztp-t{secrets.token_hex(4)}")
    wanted = tree.controllers_to_enable()
    try:
        if wanted is not None:
            wanted[0].write_text(" ".join(f"+{controller}" for controller in wanted[1]))
        assert tree.unavailable == set()
        status, _ = _run_in(tree.create("pod", "large", memory_bytes=32 << 20), _HOLDS)
        assert status == -signal.SIGKILL
        assert tree.oom_kills("pod", "large") == 1
        status, _ = _run_in(tree.create("pod", "small", memory_bytes=256 << 20), _HOLDS)
        assert (status, tree.oom_kills("pod", "small")) == (0, 0)
        status, took_s = _run_in(tree.create("pod", "slow", cpus=0.1), _BURNS)
        assert status == 0
        assert took_s > 1.0  # a tenth of a CPU, but for its first and last period
    finally:
        for top in tree.tops:
            cgroups.remove(top)
        if wanted is not None:
            wanted[0].write_text(" ".join(f"-{controller}" for controller in wanted[1]))


def _run_in(joins: tuple[Path, ...], code: str) -> tuple[int, float]:
    """The exit status of a program that begins inside a cgroup, and how long it took."""
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE) as process:
        for join in joins:
            join.write_text(str(process.pid))
        begun = time.monotonic()
        process.communicate(b"x", timeout=120)
        return process.returncode, time.monotonic() - begun


def test_removing_kills_what_is_inside_and_below() -> None:
    tree = cgroups.Tree(cgroups.detect(), f"ztp-t{secrets.token_hex(4)}")
    processes = []
    try:
        for path in (("pod", "a"), ("pod", "b"), ("other",)):
            joins = tree.create(*path)
            process = subprocess.Popen(["sleep", "60"])
            processes.append(process)
            for join in joins:
                join.write_text(str(process.pid))
            assert tree.members(*path) == {process.pid}
    finally:
        removed = [cgroups.remove(top) for top in tree.tops]
    assert removed == [True] * len(tree.tops)
    assert [process.wait(timeout=5) for process in processes] == [-9, -9, -9]
    assert [cgroups.remove(top) for top in tree.tops] == [False] * len(tree.tops)
    assert not any(top.exists() for top in tree.tops)
