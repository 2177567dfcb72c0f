"""`ztprobe trace --attach` beside a deployment under test."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ("Truth", "traced", "truth_of")

_ATTACHED_S = 60  # compiling the probes for the first time included


@contextlib.contextmanager
def traced(server: int, targets: Sequence[str], out: Path, *options: str) -> Iterator[None]:
    """These targets are watched in the body; Ctrl-C ends the trace, and the run is in ``out``.

    :param server: a process of the server's, with which the trace ends by itself.
    :param targets: ``--server TARGET --client TARGET...``
    :raises RuntimeError: the trace failed, with what it said.
    """
    command = [sys.executable, "-m", "ztprobe", "trace", "--attach", *targets, "--out", str(out), *options]
    said = out.with_suffix(".log")
    with said.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait_until_attached(process, said)
        yield
    finally:
        if psutil.pid_exists(server):  # otherwise the trace has ended by itself
            process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if not (out / "run.json").exists():
        raise RuntimeError(f"no run was left: {said.read_text()[-2000:]}")


def _wait_until_attached(process: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + _ATTACHED_S
    while "signals attached" not in said.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the trace does not begin: {said.read_text()[-2000:]}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Truth:
    """A round by the application's own clock, CLOCK_MONOTONIC nanoseconds."""

    number: int
    start_ns: int
    end_ns: int


def truth_of(clock: list[dict[str, Any]]) -> list[Truth]:
    """The rounds that the application noted."""
    times = {(one["event"], one["round"]): one["time_monotonic_ns"] for one in clock if "round" in one}
    numbers = sorted(number for event, number in times if event == "round_start")
    return [Truth(n, times["round_start", n], times["round_end", n]) for n in numbers]
