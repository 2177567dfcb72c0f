"""What else the machine was doing while a run was watched, twice a second.

A figure is the deployment's only if the machine was its own. So beside every trace a thread records
how much CPU time others used (`ztprobe.agent.cpu_account`), what the hypervisor took (steal), how
long tasks stood still for want of a CPU, of memory or of the disk (pressure, where the kernel
keeps it), memory left, load and the CPUs' frequency where it shows. Judging is the analysis'
(analysis/contention.py); nothing here knows rounds. A look costs about a millisecond of one CPU, which
the agent's own account includes. Of a run that has CPUs of its own (half of a duet pair) the record is of
these; how long tasks stood still the kernel tells of the whole machine only.

The table ``machine`` has one row per interval, whose columns say their unit: ``from_ns`` and
``to_ns`` (CLOCK_MONOTONIC); within them ``tasks_ns`` (of all threads), of which ``deployment_ns``,
``ztprobe_ns`` and ``kernel_ns``, and the rest, ``foreign_ns``; ``steal_ns``; ``cpu_stalled_ns``,
``memory_stalled_ns`` and ``io_stalled_ns`` (wall time in which some task waited; null: the kernel
does not say); at its end ``available_bytes``, ``load_1m`` and ``frequency_khz`` (mean of the CPUs; null).
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from ztprobe.agent.cpu_account import CpuAccount
from ztprobe.cpu_numbers import cpu_words

if TYPE_CHECKING:
    import pandas as pd

__all__ = ("COLUMNS", "GROWING", "LoadRecord", "MachineLoad", "foreign_share", "load_table")

INTERVAL_S = 0.5
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_LOOK_S = 0.3
_NOTEWORTHY = 0.02  # of one CPU
_STALLS = ("cpu", "memory", "io")
_MOST_CPUS_ASKED = 8  # for their frequency: a system call each, and they change together

COLUMNS = {
    "from_ns": "int64",
    "to_ns": "int64",
    "tasks_ns": "int64",
    "deployment_ns": "int64",
    "ztprobe_ns": "int64",
    "kernel_ns": "int64",
    "foreign_ns": "int64",
    "steal_ns": "int64",
    "cpu_stalled_ns": "Int64",
    "memory_stalled_ns": "Int64",
    "io_stalled_ns": "Int64",
    "available_bytes": "int64",
    "load_1m": "float64",
    "frequency_khz": "Int64",
}
# Of these a row holds what was added in its time; besides foreign_ns, what is left of tasks_ns.
GROWING = (
    *("tasks_ns", "deployment_ns", "ztprobe_ns", "kernel_ns", "steal_ns"),
    *(f"{name}_stalled_ns" for name in _STALLS),
)


class LoadRecord(Protocol):
    """What is known of the machines that a run is on: of this one, or of several by their agents."""

    @property
    def problem(self) -> str | None:
        """Why it has ended early."""
        ...

    @property
    def where(self) -> str:
        """The machine that others used most by its last `foreign_share`, for people."""
        ...

    @property
    def cpu_ns(self) -> int:
        """That recording itself has cost so far."""
        ...

    def foreign_share(self, window_s: float) -> float | None:
        """Foreign CPU time over the machine's, 0..1, in the last ``window_s`` or what of it was recorded.

        None: nothing was recorded yet.
        """
        ...

    def busiest(self) -> str | None:
        """Which other process uses most CPU time just now, ``NAME (pid N)``; None: none lives long enough."""
        ...

    def table(self) -> pd.DataFrame:
        """What was recorded so far; see the module."""
        ...

    def facts(self) -> dict[str, Any]:
        """For run.json: what the machine is, and where the account comes from."""
        ...

    def stop(self) -> None:
        """Record no more; idempotent."""
        ...


def foreign_share(rows: Sequence[Mapping[str, Any]], cpus: int) -> float | None:
    """Foreign CPU time over the machine's, 0..1, in these rows; None: there are none."""
    wall_ns: int = sum(row["to_ns"] - row["from_ns"] for row in rows)
    foreign_ns: int = sum(row["foreign_ns"] for row in rows)
    return max(0.0, foreign_ns / (wall_ns * cpus)) if wall_ns else None


def load_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table; see the module."""
    import pandas as pd  # which an agent does without

    return pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(COLUMNS)


class MachineLoad:
    """A context manager: a thread of its own records from beginning to end, or until `stop`.

    :param deployment: asked at every look, from that thread: the deployment's processes then.
    :param interval_s: between two looks, seconds.
    :param ours: processes besides this one that are ztprobe's, and so are their descendants.
    :param cpus: that are recorded; None: all.
    """

    def __init__(
        self,
        deployment: Callable[[], Iterable[int]] = tuple,
        *,
        interval_s: float = INTERVAL_S,
        ours: Iterable[int] = (),
        cpus: Sequence[int] | None = None,
    ) -> None:
        self._deployment, self._interval_s = deployment, interval_s
        self._ours = tuple(ours)
        self._own_cpus = cpus
        self._account = CpuAccount(ours=self._ours, cpus=cpus)
        self._rows: list[dict[str, Any]] = []
        self._forgotten = 0  # rows that whoever asked for them has
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.cpus = os.sysconf("SC_NPROCESSORS_ONLN") if cpus is None else len(cpus)
        self.cpu_ns = 0
        self.problem: str | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="machine-load", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def where(self) -> str:
        """See `LoadRecord`."""
        return "this machine" if self._own_cpus is None else cpu_words(self._own_cpus)

    def foreign_share(self, window_s: float) -> float | None:
        """See `LoadRecord`."""
        return foreign_share(self._rows[-max(1, round(window_s / self._interval_s)) :], self.cpus)

    def busiest(self) -> str | None:
        """See `LoadRecord`."""
        account = CpuAccount(ours=self._ours)  # its own: the recorder's thread uses the other
        account.belongs(self._deployment())
        before = account.others()
        time.sleep(_LOOK_S)
        ran_ns = {pid: now - before.get(pid, 0) for pid, now in account.others().items()}
        pid = max(ran_ns, key=lambda one: ran_ns[one], default=None)
        if pid is None or ran_ns[pid] < _NOTEWORTHY * _LOOK_S * 1e9:
            return None
        try:
            name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
        except OSError:
            return None
        # Anybody may call a process anything.
        return f"{''.join(c if c.isprintable() else '?' for c in name)} (pid {pid})"

    def rows(self, after: int) -> list[dict[str, Any]]:
        """What was recorded so far but for the first so many, which are forgotten; see the module."""
        forgotten = max(0, min(after - self._forgotten, len(self._rows)))
        del self._rows[:forgotten]
        self._forgotten += forgotten
        return self._rows[max(0, after - self._forgotten) :]

    def table(self) -> pd.DataFrame:
        """See `LoadRecord`."""
        return load_table(self._rows)

    def facts(self) -> dict[str, Any]:
        """See `LoadRecord`."""
        model, nominal_mhz = _cpu_model()
        own = {} if self._own_cpus is None else {"own_cpus": list(self._own_cpus)}
        return own | {
            "cpus": self.cpus,
            "cpu_model": model,
            "nominal_mhz": nominal_mhz,
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "source": self._account.source,
            "interval_s": self._interval_s,
            "problem": self.problem,
        }

    def stop(self) -> None:
        """See `LoadRecord`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            self._record()
        except (OSError, ValueError, IndexError) as error:
            # A run is worth more than the record beside it; the analysis sees that it ends early.
            self.problem = f"{type(error).__name__}: {error}"

    def _record(self) -> None:
        before = self._look()
        ended = False
        while not ended:
            ended = self._stop.wait(
                self._interval_s
            )  # what has happened since the last look is recorded, too
            now = self._look()
            row = {"from_ns": before["at_ns"], "to_ns": now["at_ns"]}
            for name in GROWING:
                row[name] = None if now[name] is None else now[name] - before[name]
            ours_ns = row["deployment_ns"] + row["ztprobe_ns"] + row["kernel_ns"]
            # Negative by a little where a counter was read a moment later; sums are right.
            row["foreign_ns"] = row["tasks_ns"] - ours_ns
            self._rows.append(
                row | {name: now[name] for name in ("available_bytes", "load_1m", "frequency_khz")}
            )
            before = now
            self.cpu_ns = time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID)

    def _look(self) -> dict[str, Any]:
        at_ns = time.monotonic_ns()
        self._account.belongs(self._deployment())
        times = self._account.read()
        return {
            "at_ns": at_ns,
            "tasks_ns": times.tasks_ns,
            "deployment_ns": times.deployment_ns,
            "ztprobe_ns": times.ztprobe_ns,
            "kernel_ns": times.kernel_ns,
            "steal_ns": _steal_ns(self._own_cpus),
            **{f"{name}_stalled_ns": _stalled_ns(name) for name in _STALLS},
            "available_bytes": _available_bytes(),
            "load_1m": float(Path("/proc/loadavg").read_text().split()[0]),
            "frequency_khz": _frequency_khz(self._own_cpus or sorted(os.sched_getaffinity(0))),
        }


def _steal_ns(cpus: Sequence[int] | None) -> int:
    lines = Path("/proc/stat").read_text().splitlines()
    wanted = ("cpu",) if cpus is None else tuple(f"cpu{cpu}" for cpu in cpus)
    ticks = [int(line.split(maxsplit=9)[8]) for line in lines if line.partition(" ")[0] in wanted]
    return sum(ticks) * _TICK_NS


def _stalled_ns(what: str) -> int | None:
    # The first line: some avg10=0.00 avg60=0.00 avg300=0.00 total=MICROSECONDS
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f"/proc/pressure/{what}").read_text().partition("\n")[0].rpartition("=")[2]) * 1000
    return None


def _available_bytes() -> int:
    found = re.search(r"(?m)^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else 0


def _frequency_khz(cpus: Sequence[int]) -> int | None:
    values = []
    for cpu in cpus[:: -(-len(cpus) // _MOST_CPUS_ASKED)]:
        with contextlib.suppress(OSError, ValueError):
            path = f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"
            values.append(int(Path(path).read_text()))
    return round(sum(values) / len(values)) if values else None


def _cpu_model() -> tuple[str | None, float | None]:
    text = Path("/proc/cpuinfo").read_text(errors="replace")
    model = re.search(r"(?m)^model name\s*:\s*(.+)$", text)
    speed = re.search(r"(?m)^cpu MHz\s*:\s*([\d.]+)$", text)
    return (model[1].strip() if model else None, float(speed[1]) if speed else None)
