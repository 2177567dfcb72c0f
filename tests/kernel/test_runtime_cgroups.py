"""The three layouts in which cgroups are met, on a directory that looks like each."""

from __future__ import annotations

import secrets
import subprocess
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
