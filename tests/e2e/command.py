"""ztprobe as a user calls it: a process of its own, watched while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from ztprobe.paths import STATE_DIR

__all__ = ("ZTPROBE", "Outcome", "Trace", "run", "unprivileged")

ZTPROBE = (sys.executable, "-m", "ztprobe")
_WATCH_S = 0.05
_LIMIT_S = 180.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    def assert_refused(self, status: int, *words: str) -> None:
        """One clear line on standard error that holds ``words``, nothing else, and this exit status."""
        assert (self.status, self.stdout) == (status, ""), self
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("ztprobe: ")
        for word in words:
            assert word in lines[0]


def run(
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Outcome:
    """``ztprobe ARGUMENTS``, to its end; ended in order if the test itself is."""
    with subprocess.Popen(
        [*prefix, *ZTPROBE, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=_LIMIT_S)
        except BaseException:
            process.send_signal(signal.SIGINT)
            raise
    return Outcome(process.returncode, stdout, stderr)


def unprivileged() -> list[str]:
    """A prefix that takes away every right of root but that of reading files.

    A clone may well lie in a home directory that nobody else can enter.
    """
    keep = "+dac_read_search"
    return [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--bounding-set=-all,+dac_read_search",
        f"--inh-caps=-all,{keep}",
        f"--ambient-caps=-all,{keep}",
        "--no-new-privs",
    ]


@dataclass
class Trace:
    """A running ``ztprobe trace``, and everything that it has brought up so far."""

    out: Path
    process: subprocess.Popen[str]
    # run id -> its journal as last seen
    journals: dict[str, dict[str, list[object]]] = field(default_factory=dict)
    # (pid, started) of every descendant: a pid alone may be somebody else's by now
    descendants: set[tuple[int, float]] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)
    _news: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)

    @classmethod
    def start(cls, out: Path, *arguments: str, command: str = "trace", watched: bool = True) -> Trace:
        """Begin ``ztprobe COMMAND --out OUT ARGUMENTS`` in a process group of its own, as a shell does.

        :param watched: keep track of what it brings up, which costs a few per cent of a CPU.
        """
        process = subprocess.Popen(
            [*ZTPROBE, command, "--out", str(out), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=out.parent,
        )
        trace = cls(out, process)
        for work in (trace._read, trace._watch) if watched else (trace._read,):
            threading.Thread(target=work, daemon=True).start()
        return trace

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            self._news.put(line)
        self._news.put(None)

    def _watch(self) -> None:
        owner = psutil.Process(self.process.pid)
        while self.process.returncode is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.descendants |= {(p.pid, p.create_time()) for p in owner.children(recursive=True)}
            for journal in STATE_DIR.glob("*/journal.json"):
                # Files come and go while we look.
                with contextlib.suppress(OSError, ValueError, KeyError):
                    content = json.loads(journal.read_text())
                    if content["owner"]["pid"] == self.process.pid:
                        self.journals[journal.parent.name] = content
            time.sleep(_WATCH_S)

    def until(self, arrived: Callable[[Trace], bool]) -> None:
        """Wait for a moment in the run, looked for at every line of progress and every 50 ms."""
        give_up = time.monotonic() + _LIMIT_S
        while not arrived(self):
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < give_up, self.lines
            with contextlib.suppress(queue.Empty):
                self._news.get(timeout=_WATCH_S)

    def said(self, start: str) -> bool:
        """Whether a line of progress began with ``start``."""
        return any(line.strip().startswith(start) for line in self.lines)

    def interrupt(self, signum: signal.Signals) -> Outcome:
        """Send the signal as a terminal would, to the whole group (SIGKILL: to ztprobe alone), and wait."""
        if signum == signal.SIGKILL:
            self.process.kill()
        else:
            os.killpg(self.process.pid, signum)
        return self.wait()

    def wait(self) -> Outcome:
        """To its end."""
        assert self.process.stdout is not None
        stdout = self.process.stdout.read()
        self.process.wait(_LIMIT_S)
        while self._news.get(timeout=10) is not None:
            pass
        return Outcome(self.process.returncode, stdout, "\n".join(self.lines) + "\n")

    def end(self) -> None:
        """Whatever happened: not running any more."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
