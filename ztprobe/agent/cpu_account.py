"""Whose CPU time the machine spends: the deployment's, ztprobe's, the kernel's, and everybody else's.

What belongs to others (*foreign CPU time*) cannot be had by adding up other processes: a compiler's
children are born and gone between two looks. It is what remains when the known is taken from the
whole, so every part has to be read from a clock that is exact and keeps the dead:

- the whole: version 1's ``cpuacct.usage`` of the root cgroup (nanoseconds that tasks ran), else version
  2's ``cpu.stat`` of the root's children (the root's own file is sampled by ticks) with the kernel's threads,
  unless processes stand directly in the root, who die with their clocks; else ``/proc/stat``, ticks of 10 ms;
- the deployment: ``cpu.stat`` or ``cpuacct.usage`` of the cgroups of the processes that are watched;
- ztprobe: this process, others that are named, and their living descendants by their process clocks
  (clock_getcpuclockid(3)), which also keep threads that have ended, and the children that they waited for;
- the kernel: the clocks of kernel threads. They do what others cause, packets of our own pods
  not least, so they are nobody's. Softirq work outside of threads is in none of these numbers.

Of a deployment that has CPUs of its own the account may be of these alone. The whole is then what ran
there (``cpuacct.usage_percpu`` of version 1's root, else ``/proc/schedstat``, else ``/proc/stat``), whoever
ran it, and a kernel thread counts by the CPU on which it is found after it ran. The deployment and ztprobe
are taken to stay on these CPUs; what strays from other CPUs is foreign here.

All values are cumulative nanoseconds; only their differences mean something.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ("CpuAccount", "CpuTimes")

_PF_KTHREAD = 0x00200000  # include/linux/sched.h
_CPUCLOCK_SCHED = 2  # include/linux/posix-timers.h: the clock of a whole process, by what it ran
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_FILES = {"schedstat": "schedstat", "proc_stat": "stat"}

Kind = Literal["kernel", "ztprobe", "other"]


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """CPU time since some moment, in nanoseconds."""

    tasks_ns: int  # of all threads of the machine, or of its CPUs that are looked at
    deployment_ns: int
    ztprobe_ns: int
    kernel_ns: int  # of kernel threads


class _Sum:
    """A cumulative sum of counters that come and go: what has gone stays in.

    A counter that is new began at 0 since the last look, if it can have: one that holds more than the
    machine could have spent since then is old and new only to us.
    """

    def __init__(self) -> None:
        self._total_ns = 0
        self._last: dict[object, int] | None = None
        self._looked_ns = 0

    def take(self, values_ns: dict[object, int]) -> int:
        """The sum now, since the first look."""
        now_ns = time.monotonic_ns()
        spendable_ns = (now_ns - self._looked_ns) * (os.cpu_count() or 1)
        for key, value_ns in values_ns.items() if self._last is not None else ():
            before_ns = (self._last or {}).get(key, 0 if value_ns <= spendable_ns else value_ns)
            self._total_ns += max(0, value_ns - before_ns)
        self._last, self._looked_ns = values_ns, now_ns
        return self._total_ns


class CpuAccount:
    """Read again and again, from one thread.

    :param proc: where procfs is.
    :param mounts: the table of mounted file systems.
    :param ours: processes besides this one that are ztprobe's, and so are their descendants.
    :param cpus: that are looked at; None: the whole machine.
    """

    def __init__(
        self,
        proc: Path = Path("/proc"),
        mounts: Path = Path("/proc/self/mounts"),
        *,
        ours: Iterable[int] = (),
        cpus: Iterable[int] | None = None,
    ) -> None:
        self._proc = proc
        self._cpus = None if cpus is None else frozenset(cpus)
        self._own_pid = os.getpid()
        self._ours = frozenset({self._own_pid, *ours})
        self._cpuacct, self._cgroup2 = _roots(mounts)
        self._kinds: dict[int, Kind] = {}
        self._deployment: frozenset[tuple[Path, str]] = frozenset()  # (counter file, cgroup as /proc says)
        self._known: set[int] = set()  # processes of the deployment whose cgroup we have
        self._starters: set[int] = set()  # processes that have started some of the deployment's
        self._uncontained: set[int] = set()  # processes of the deployment without a cgroup of their own
        self._sums = {name: _Sum() for name in ("kernel", "deployment", "whole")}
        self._kernel_ran_ns: dict[object, int] = {}  # by kernel thread, on whichever CPU
        self._kernel_here_ns = 0  # of them all, on the CPUs that are looked at
        # Where the whole comes from: ``cpuacct``, ``cgroup2``, ``schedstat`` or, coarse, ``proc_stat``.
        # It stays the same.
        self.source = self._found_source()

    def _found_source(self) -> str:
        if _is_root(self._cpuacct, "release_agent"):
            return "cpuacct"
        if self._cpus is not None:  # of which version 2 says nothing
            return "schedstat" if (self._proc / "schedstat").exists() else "proc_stat"
        # Only the root of version 2 has no type.
        if self._cgroup2 is None or (self._cgroup2 / "cgroup.type").exists():
            return "proc_stat"
        for line in (self._cgroup2 / "cgroup.procs").read_text().splitlines():
            pid = int(line)  # 0: of another namespace of pids
            if self._kind(pid) != "kernel" and (not pid or self._stat(pid) is not None):
                return "proc_stat"
        return "cgroup2"

    def belongs(self, pids: Iterable[int]) -> None:
        """These processes are the deployment's, and so is all else in their cgroups."""
        for pid in set(pids) - self._known - self._uncontained:
            found = self._counter_of(pid)
            if (fields := self._stat(pid)) is not None:
                self._starters.add(int(fields[1]))
            if found is None:
                self._uncontained.add(pid)
            else:
                self._known.add(pid)
                self._deployment |= {found}

    def read(self) -> CpuTimes:
        """The account now; takes about a millisecond on a machine with 150 processes."""
        pids = self._classified()
        kernel_ns = self._kernel_ns(_clocks(pid for pid in pids if self._kinds[pid] == "kernel"))
        deployment = {
            path: value for path, _ in self._deployment if (value := _counter_ns(path)) is not None
        } | _clocks(pid for pid in self._uncontained if self._kinds.get(pid) == "other")
        return CpuTimes(
            tasks_ns=self._whole_ns(kernel_ns),
            deployment_ns=self._sums["deployment"].take(deployment),
            ztprobe_ns=self._ztprobe_ns(pids),
            kernel_ns=kernel_ns,
        )

    def others(self) -> dict[int, int]:
        """pid -> nanoseconds that it ran, of every living process that is neither the kernel's nor ours."""
        pids = self._classified()
        cgroups = {cgroup for _, cgroup in self._deployment}
        found = {}
        for pid, ran_ns in _clocks(pid for pid in pids if self._kinds[pid] == "other").items():
            if pid not in self._uncontained and cgroups.isdisjoint(self._cgroups_of(int(str(pid))).values()):
                found[int(str(pid))] = ran_ns
        return found

    def _kernel_ns(self, ran_ns: dict[object, int]) -> int:
        if self._cpus is None:
            return self._sums["kernel"].take(ran_ns)
        for pid, now_ns in ran_ns.items():
            more_ns = now_ns - self._kernel_ran_ns.get(pid, now_ns)
            if more_ns and (fields := self._stat(int(str(pid)))) is not None:
                self._kernel_here_ns += more_ns if int(fields[36]) in self._cpus else 0
        self._kernel_ran_ns = ran_ns
        return self._kernel_here_ns

    def _ran_on_cpus_ns(self, cpus: frozenset[int]) -> int:
        """What ran on these CPUs."""
        if self.source == "cpuacct" and self._cpuacct is not None:
            by_cpu = (self._cpuacct / "cpuacct.usage_percpu").read_text().split()
            return sum(int(by_cpu[cpu]) for cpu in cpus)
        # Documentation/scheduler/sched-stats.rst: the 7th number of a CPU's line is how long it ran tasks. Of
        # /proc/stat it is user, nice and system, the first three.
        lines = (line.split() for line in (self._proc / _FILES[self.source]).read_text().splitlines())
        of_cpu = {words[0]: words[1:] for words in lines if words}
        if self.source == "schedstat":
            return sum(int(of_cpu[f"cpu{cpu}"][6]) for cpu in cpus)
        return sum(int(ticks) for cpu in cpus for ticks in of_cpu[f"cpu{cpu}"][:3]) * _TICK_NS

    def _whole_ns(self, kernel_ns: int) -> int:
        if self._cpus is not None:
            return self._ran_on_cpus_ns(self._cpus)
        if self.source == "cpuacct" and self._cpuacct is not None:
            return int((self._cpuacct / "cpuacct.usage").read_text())
        if self.source == "cgroup2" and self._cgroup2 is not None:
            counters: dict[object, int] = {}
            for child in self._cgroup2.iterdir():
                if (value := _counter_ns(child / "cpu.stat")) is not None:
                    counters[child] = value
            return self._sums["whole"].take(counters) + kernel_ns
        user, nice, system, *_ = (self._proc / "stat").read_text().split(maxsplit=8)[1:8]
        return (int(user) + int(nice) + int(system)) * _TICK_NS

    def _ztprobe_ns(self, pids: list[int]) -> int:
        waited_for = resource.getrusage(resource.RUSAGE_CHILDREN)
        total_ns = time.process_time_ns() + round((waited_for.ru_utime + waited_for.ru_stime) * 1e9)
        cgroups = {cgroup for _, cgroup in self._deployment}
        for pid in pids:
            if self._kinds[pid] != "ztprobe" or pid == self._own_pid or pid in self._known:
                continue
            # Descendants of ours join the deployment's cgroups when they become containers.
            if cgroups.isdisjoint(self._cgroups_of(pid).values()):
                total_ns += sum(_clocks([pid]).values())
                # Whom a process that starts containers waits for has been in their cgroups.
                if pid not in self._starters and (fields := self._stat(pid)) is not None:
                    total_ns += (int(fields[13]) + int(fields[14])) * _TICK_NS  # cutime, cstime
        return total_ns

    def _classified(self) -> list[int]:
        """Every process there is; those that are new have been looked at once."""
        pids = [int(name) for name in os.listdir(self._proc) if name.isdecimal()]
        here = set(pids)
        self._kinds = {pid: kind for pid, kind in self._kinds.items() if pid in here}
        for pid in pids:
            self._kind(pid)
        return pids

    def _kind(self, pid: int) -> Kind:
        if pid in self._ours:
            self._kinds[pid] = "ztprobe"
        if (known := self._kinds.get(pid)) is not None:
            return known
        kind: Kind = "other"
        if (fields := self._stat(pid)) is not None:
            parent, flags = int(fields[1]), int(fields[6])
            if flags & _PF_KTHREAD:
                kind = "kernel"
            elif (parent > 1 or parent in self._ours) and self._kind(parent) == "ztprobe":
                kind = "ztprobe"
        self._kinds[pid] = kind
        return kind

    def _stat(self, pid: int) -> list[str] | None:
        """The fields of proc_pid_stat(5) from the third, the state, on; None: it is gone."""
        with contextlib.suppress(OSError):
            fields = (self._proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
            return fields if len(fields) > 20 else None
        return None

    def _counter_of(self, pid: int) -> tuple[Path, str] | None:
        for controllers, cgroup in self._cgroups_of(pid).items():
            root, name = (self._cgroup2, "cpu.stat") if not controllers else (self._cpuacct, "cpuacct.usage")
            if root is None or cgroup == "/" or (controllers and "cpuacct" not in controllers.split(",")):
                continue
            counter = root / cgroup.lstrip("/") / name
            if _counter_ns(counter) is not None:
                return counter, cgroup
        return None

    def _cgroups_of(self, pid: int) -> dict[str, str]:
        """Controllers ("" for version 2) -> cgroup."""
        with contextlib.suppress(OSError):
            lines = (self._proc / str(pid) / "cgroup").read_text(errors="replace").splitlines()
            return {controllers: cgroup for _, controllers, cgroup in (x.split(":", 2) for x in lines)}
        return {}


def _roots(mounts: Path) -> tuple[Path | None, Path | None]:
    """Where version 1's cpuacct and version 2 are mounted; None: not."""
    cpuacct = unified = None
    for where, kind, options in _mounted(mounts):
        if kind == "cgroup2":
            unified = unified or where
        elif kind == "cgroup" and "cpuacct" in options.split(","):
            cpuacct = cpuacct or where
    return cpuacct, unified


def _mounted(mounts: Path) -> Iterator[tuple[Path, str, str]]:
    with contextlib.suppress(OSError):
        for line in mounts.read_text(errors="replace").splitlines():
            _, where, kind, options, *_ = line.split()
            yield Path(where), kind, options


def _is_root(cgroup: Path | None, file_of_the_root: str) -> bool:
    return cgroup is not None and (cgroup / file_of_the_root).exists()


def _counter_ns(path: Path) -> int | None:
    """Of ``cpuacct.usage`` (nanoseconds) or ``cpu.stat`` (its first line: microseconds); None: not there."""
    try:
        text = path.read_text()
    except OSError:
        return None
    if path.name == "cpuacct.usage":
        return int(text)
    name, _, value = text.partition("\n")[0].partition(" ")
    return int(value) * 1000 if name == "usage_usec" else None


def _clocks(pids: Iterable[int]) -> dict[object, int]:
    """pid -> nanoseconds that all its threads ran, those that have ended too; without processes gone."""
    found: dict[object, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[pid] = time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
    return found
