"""Known cost, put into training or aggregation on purpose, to hold a measurement against.

Off unless asked for. Each variable holds milliseconds per round, separated by commas,
from round 1 on; rounds beyond the list get nothing. ``NAME=`` before a list gives it to
that pod alone, and semicolons separate several: ``fl-client-1=0,20,50;fl-client-0=100``.

FL_INJECT_COMPUTE_SLEEP_MS   a client sleeps at the end of training
FL_INJECT_COMPUTE_BUSY_MS    a client computes without end at the end of training
FL_INJECT_AGGREGATION_MS     the server sleeps at the end of aggregation

What is logged (`injected`: kind, begin_monotonic_ns, end_monotonic_ns) is the time that
really passed.

FL_LOG_CPU_WAIT=1            a client logs how long its training thread has waited for a CPU in its
                             life so far (`cpu_wait`, from the kernel's schedstat), before and
                             after training
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fl.errors import ConfigError
from fl.events import EventLog

__all__ = ("Injection",)

_SLEEP, _BUSY = "FL_INJECT_COMPUTE_SLEEP_MS", "FL_INJECT_COMPUTE_BUSY_MS"
_AGGREGATION = "FL_INJECT_AGGREGATION_MS"
_CPU_WAIT = "FL_LOG_CPU_WAIT"
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


@dataclass(frozen=True, kw_only=True)
class Injection:
    """Milliseconds per round of each kind, for one process."""

    sleep_ms: tuple[float, ...] = ()
    busy_ms: tuple[float, ...] = ()
    aggregation_ms: tuple[float, ...] = ()
    log_cpu_wait: bool = False

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Injection:
        """What the environment asks of the process named by POD_NAME. :raises ConfigError: not numbers."""
        pod = env.get("POD_NAME", "")
        return cls(
            sleep_ms=_rounds(env, _SLEEP, pod),
            busy_ms=_rounds(env, _BUSY, pod),
            aggregation_ms=_rounds(env, _AGGREGATION, pod),
            log_cpu_wait=env.get(_CPU_WAIT) == "1",
        )

    def compute(self, round_number: int, log: EventLog) -> None:
        """A client's part; returns when the time has passed."""
        _spend("sleep", _of(self.sleep_ms, round_number), round_number, log)
        _spend("busy", _of(self.busy_ms, round_number), round_number, log)

    def cpu_wait(self, round_number: int, log: EventLog) -> None:
        """Log the calling thread's waiting for a CPU so far, where that is asked for and known."""
        if self.log_cpu_wait and (waited_ns := _cpu_wait_ns()) is not None:
            log.emit("cpu_wait", round_number, cpu_wait_ns=waited_ns)

    def aggregation(self, round_number: int, log: EventLog) -> None:
        """The server's part."""
        _spend("aggregation", _of(self.aggregation_ms, round_number), round_number, log)


def _of(values: tuple[float, ...], round_number: int) -> float:
    return values[round_number - 1] if round_number <= len(values) else 0.0


def _rounds(env: Mapping[str, str], key: str, pod: str) -> tuple[float, ...]:
    for entry in filter(None, env.get(key, "").split(";")):
        name, separator, values = entry.rpartition("=")
        if separator and name != pod:
            continue
        try:
            found = tuple(float(value) for value in values.split(","))
        except ValueError:
            found = (-1.0,)
        if any(not 0 <= value < 3_600_000 for value in found):
            raise ConfigError(f"{key}={env[key]}: expected milliseconds per round, separated by commas")
        return found
    return ()


def _spend(kind: str, duration_ms: float, round_number: int, log: EventLog) -> None:
    if not duration_ms:
        return
    begin_ns = time.monotonic_ns()
    if kind == "busy":
        until_ns = begin_ns + round(duration_ms * 1e6)
        while time.monotonic_ns() < until_ns:
            pass
    else:
        time.sleep(duration_ms / 1e3)
    end_ns = time.monotonic_ns()
    log.emit(
        "injected",
        round_number,
        kind=kind,
        begin_monotonic_ns=begin_ns,
        end_monotonic_ns=end_ns,
    )


def _cpu_wait_ns() -> int | None:
    # Documentation/scheduler/sched-stats.rst: time on a CPU, time waited for one, timeslices.
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(_SCHEDSTAT.read_text().split()[1])
    return None
