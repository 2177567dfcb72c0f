"""Processes of a deployment under test: output into files, ended with all that they forked."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

__all__ = ("Processes", "environment", "environment_of", "processes")

CACHE = Path(
    os.environ.get("ZTPROBE_FRAMEWORKS")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ztprobe" / "frameworks"
)


def environment(name: str) -> Path:
    """The virtual environment that tools/setup-frameworks made.

    :raises FileNotFoundError: it has not.
    """
    path = CACHE / name
    if not (path / ".installed").exists():
        raise FileNotFoundError(f"{path} is missing: make setup-frameworks")
    return path


def environment_of(venv: Path, **more: str) -> dict[str, str]:
    """Environment variables for programs of a virtual environment, which start others of it by name."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    return {**kept, "PATH": f"{venv}/bin:{os.environ['PATH']}", **more}


class Processes:
    """What was started, by name."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: list[str], env: dict[str, str], cwd: Path | None = None) -> int:
        """Output goes to ``NAME.log``. :returns: the pid"""
        with (self.logs / f"{name}.log").open("ab") as out:
            process = subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.started[name] = process
        return process.pid

    def check(self) -> None:
        """:raises RuntimeError: one of them has ended (with the end of its log)"""
        for name, process in self.started.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}: {self.tail(name)}")

    def tail(self, name: str, characters: int = 2000) -> str:
        """The end of what it printed."""
        return (self.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-characters:]

    def end(self) -> None:
        """End all of them with what they forked, in whichever session those are."""
        doomed: list[psutil.Process] = []
        for process in self.started.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                doomed += [parent, *parent.children(recursive=True)]
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for each in doomed:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.send_signal(sign)  # psutil makes sure that the pid is still the same process
            _, doomed = psutil.wait_procs(doomed, timeout=5)
        for process in self.started.values():
            process.wait(timeout=5)


@contextlib.contextmanager
def processes(logs: Path) -> Iterator[Processes]:
    """Ended with the context, however it ends."""
    logs.mkdir(parents=True, exist_ok=True)
    started = Processes(logs)
    try:
        yield started
    finally:
        started.end()


def wait_for_port(pid: int, port: int, timeout_s: float) -> None:
    """Until something listens at the port in the namespace of the process.

    :raises TimeoutError: nothing does, within the time.
    """
    wanted = f":{port:04X}"
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                    fields = line.split()
                    if fields[1].endswith(wanted) and fields[3] == "0A":
                        return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens at port {port} after {timeout_s:.0f} s")
