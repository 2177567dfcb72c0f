"""What an agent's processes use, by the kernel's account of them and not by the agent's own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.programs import program

__all__ = ("AgentUse", "Sample", "cpu_s", "maps_bytes", "processes_below", "resident_bytes")

_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_S = 2.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
# proc(5), pagemap: a page's frame, and whether there is one.
_FRAME, _PRESENT = np.uint64((1 << 55) - 1), np.uint64(1 << 63)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """At one moment, all processes of an agent together."""

    at_ns: int  # CLOCK_MONOTONIC
    cpu_s: float  # since they began, those that have ended among them
    resident_bytes: int
    maps_bytes: int


@dataclass
class AgentUse:
    """Samples of a process and of all that it has started; a context manager.

    :param pid: the service's.
    """

    pid: int
    samples: list[Sample] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _failure: BaseException | None = None

    def __enter__(self) -> AgentUse:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._ended.wait(_SAMPLE_S):
                self.samples.append(self._sample())
        except BaseException as error:
            self._failure = error

    def _sample(self) -> Sample:
        at_ns, pids = time.monotonic_ns(), list(processes_below(self.pid))
        return Sample(
            at_ns=at_ns,
            cpu_s=sum(map(cpu_s, pids)),
            resident_bytes=resident_bytes(*pids),
            maps_bytes=maps_bytes(*pids),
        )

    def between(self, from_ns: int, to_ns: int) -> list[Sample]:
        """Those within a time."""
        return [one for one in self.samples if from_ns <= one.at_ns <= to_ns]


def processes_below(pid: int) -> Iterator[int]:
    """It, and what it has started, and what these have."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended
            for child in (task / "children").read_text().split():
                yield from processes_below(int(child))


def cpu_s(pid: int) -> float:
    """User and system time of a process, and of its children that have ended."""
    # Behind the name in brackets: state, and 10 numbers; then utime, stime, cutime, cstime (proc(5)).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def resident_bytes(*pids: int) -> int:
    """Page frames that some of them map, each once, whoever else maps it; without those of BPF maps."""
    frames = [np.empty(0, np.uint64)]
    for pid in pids:
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
            for line in maps:
                if line.endswith((" anon_inode:bpf-map", "[vsyscall]")):
                    continue
                first, end = (int(address, 16) // _PAGE for address in line.split()[0].split("-"))
                entries = np.frombuffer(os.pread(pagemap.fileno(), 8 * (end - first), 8 * first), np.uint64)
                frames.append(entries[entries & _PRESENT != 0] & _FRAME)
    return np.unique(np.concatenate(frames)).size * _PAGE


def maps_bytes(*pids: int) -> int:
    """Of the BPF maps that some of them have open: which, by procfs; what they take, by bpftool."""
    numbers: set[int] = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):
                said = dict(line.split(":\t", 1) for line in entry.read_text().splitlines() if ":\t" in line)
                numbers |= {int(said["map_id"])} if "map_id" in said else set()
    done = subprocess.run(
        [program("bpftool"), "-j", "map", "show"], capture_output=True, text=True, check=True
    )
    return sum(int(one["bytes_memlock"]) for one in json.loads(done.stdout) if one["id"] in numbers)
