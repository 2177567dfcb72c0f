"""Halves of a machine's CPUs, and what ran on some of them alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ztprobe.agent.cpu_account import CpuAccount
from ztprobe.cpu_numbers import cpu_words
from ztprobe.errors import PreflightError
from ztprobe.process.own_cpus import halves


def topology(directory: Path, siblings: Mapping[int, str]) -> Path:
    for cpu, text in siblings.items():
        file = directory / f"cpu{cpu}" / "topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(f"{text}\n")
    return directory


@pytest.mark.parametrize(
    ("siblings", "allowed", "expected"),
    [
        ({0: "0", 1: "1"}, [0, 1], ((0,), (1,))),
        # Threads of a core are neighbours, or half of the numbers apart; a core is never divided.
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, [0, 1, 2, 3], ((0, 1), (2, 3))),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, [0, 1, 2, 3], ((0, 2), (1, 3))),
        # Of three cores one stays idle; of what may not be used nothing is.
        ({0: "0", 1: "1", 2: "2"}, [0, 1, 2], ((0,), (1,))),
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, [0, 1, 2], ((0,), (2,))),
        ({}, [4, 7], ((4,), (7,))),  # the kernel does not say
    ],
)
def test_halves_share_no_core(
    tmp_path: Path,
    siblings: Mapping[int, str],
    allowed: Sequence[int],
    expected: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    assert halves(allowed, topology(tmp_path, siblings)) == expected


def test_two_threads_of_one_core_are_no_two_halves(tmp_path: Path) -> None:
    one_core = topology(tmp_path, {0: "0-1", 1: "0-1"})
    with pytest.raises(PreflightError, match=re.escape("and there is one here (CPUs 0-1): run")):
        halves([0, 1], one_core)


@pytest.mark.parametrize(
    ("cpus", "words"),
    [([3], "CPU 3"), ([1, 0], "CPUs 0-1"), ([0, 2, 3, 7], "CPUs 0, 2-3 and 7"), ([5, 9], "CPUs 5 and 9")],
)
def test_numbers_of_cpus_for_people(cpus: list[int], words: str) -> None:
    assert cpu_words(cpus) == words


def test_every_thread_of_a_process_stays_and_so_do_its_children() -> None:
    cpu = min(os.sched_getaffinity(0))
    program = f"""
import os, subprocess, threading
ended = threading.Event()
threading.Thread(target=ended.wait, daemon=True).start()
from ztprobe.process.own_cpus import stay_on
stay_on([{cpu}])
found = [os.sched_getaffinity(int(one)) for one in os.listdir("/proc/self/task")]
assert len(found) == 2 and all(one == {{{cpu}}} for one in found), found
print(subprocess.check_output(["grep", "Cpus_allowed_list", "/proc/self/status"], text=True))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Cpus_allowed_list:", str(cpu)]


def proc(directory: Path, ran_ns: Sequence[int], ticks: Sequence[int], *, schedstat: bool) -> Path:
    """A /proc of a machine with so many CPUs and no process."""
    if schedstat:
        # Documentation/scheduler/sched-stats.rst, version 15: nine numbers, the seventh is the time.
        lines = [f"cpu{cpu} 1 0 3 4 5 6 {ns} 8 9\ndomain0 3 1 2" for cpu, ns in enumerate(ran_ns)]
        (directory / "schedstat").write_text("version 15\ntimestamp 1\n" + "\n".join(lines) + "\n")
    lines = [f"cpu{cpu} {n} 1 2 500 6 7 8 9 0 0" for cpu, n in enumerate(ticks)]
    (directory / "stat").write_text("cpu  1 2 3 4 5 6 7 8 9 0\n" + "\n".join(lines) + "\nintr 1\n")
    return directory


@pytest.mark.parametrize("schedstat", [True, False])
def test_the_whole_is_what_ran_on_these_cpus(tmp_path: Path, schedstat: bool) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("none /sys/fs/cgroup cgroup2 rw 0 0\n")
    here = proc(tmp_path, [100, 2_000, 30_000, 7], [10, 200, 3_000, 4], schedstat=schedstat)
    account = CpuAccount(here, mounts, cpus=[1, 2])
    assert account.source == ("schedstat" if schedstat else "proc_stat")
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert account.read().tasks_ns == (32_000 if schedstat else (200 + 3_000 + 2 * (1 + 2)) * tick_ns)
