"""The parent's side of a zygote: start containers, and learn how they ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztprobe import paths
from ztprobe.errors import UsageError, WorkloadError

__all__ = ("ContainerSpec", "Preload", "Zygote")

_MESSAGE_BYTES = 1 << 16
# Imports of several hundred megabytes from a cold disk, on a busy machine.
_WARM_UP_S = 180.0
_ANSWER_S = 30.0
_END_S = 3.0


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """All that a forked child needs to become a container (it travels as JSON)."""

    key: str  # POD/CONTAINER
    pod: str
    netns: str
    cgroup_procs: tuple[str, ...]
    command: tuple[str, ...]
    program: str | None  # executable; None: run ``module``'s main() without exec
    module: str | None
    env: Mapping[str, str]
    stdout: str
    stderr: str
    files: Mapping[str, str]  # machine's file -> what the container sees there
    volumes: Mapping[str, str]  # mount point below /run -> directory


@dataclass(frozen=True, kw_only=True)
class Preload:
    """What the warm zygote imports and loads before it serves."""

    module: str
    dataset: str
    data_dir: str | None


class Zygote:
    """A child process that forks containers; start, launch, poll, close.

    Containers die with the zygote and the zygote with the thread that started it, so
    start it from a thread that lives as long as the run.
    """

    def __init__(self, cgroup_procs: tuple[Path, ...], log: Path, preload: Preload | None = None) -> None:
        self._preload = preload
        self._ready = False
        self._log = log
        self.warm_up_s = 0.0
        self.exits: dict[str, int] = {}  # key -> exit status, negative: the signal
        self._started: dict[str, int] = {}
        self._channel, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = {
            "socket": far.fileno(),
            "parent": os.getpid(),
            "cgroup_procs": [str(path) for path in cgroup_procs],
            "preload": None if preload is None else dataclasses.asdict(preload),
        }
        # Without a workload to import, not even site-packages are looked at: 20 ms instead of 60.
        isolation = ["-E", "-s", "-S"] if preload is None else ["-E", "-s"]
        start = (
            f"import sys, json; sys.path.insert(0, {str(paths.REPO_DIR)!r});"
            " from ztprobe.runtime.local import zygote; sys.exit(zygote.main(json.loads(sys.argv[1])))"
        )
        with far, open(log, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *isolation, "-c", start, json.dumps(arguments)],
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=paths.REPO_DIR,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "HOME": os.environ.get("HOME", "/root"),
                    "LANG": "C.UTF-8",
                    # Before torch is imported, or it makes a thread per core.
                    "OMP_NUM_THREADS": "1",
                    "MKL_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                },
                # Ctrl-C in the terminal is for the command line, which ends us in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the zygote itself."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Return once it serves.

        :raises UsageError: the workload refuses its settings (data set, data directory).
        :raises WorkloadError: it could not be imported, or takes too long.
        """
        deadline = time.monotonic() + _WARM_UP_S
        while not self._ready:
            self._receive(deadline - time.monotonic(), "is not ready")

    def launch(self, spec: ContainerSpec) -> int:
        """Start a container and return its pid.

        :raises WorkloadError: the zygote is gone.
        """
        return self.launch_all([spec])[0]

    def launch_all(self, specs: list[ContainerSpec]) -> list[int]:
        """Start containers at once: asked for in one go, answered together."""
        self.wait_ready()
        try:
            for spec in specs:
                self._channel.send(json.dumps(dataclasses.asdict(spec)).encode())
        except OSError as error:
            raise WorkloadError(f"containers cannot be started: {error} (see {self._log})") from error
        deadline = time.monotonic() + _ANSWER_S
        while any(spec.key not in self._started for spec in specs):
            self._receive(deadline - time.monotonic(), "does not answer")
        return [self._started[spec.key] for spec in specs]

    def poll(self) -> dict[str, int]:
        """Take in what has happened and return all exits so far."""
        with contextlib.suppress(TimeoutError):
            while self._channel.fileno() >= 0:
                self._receive(0.0, "")
        return self.exits

    def _receive(self, timeout_s: float, problem: str) -> None:
        readable, _, _ = select.select([self._channel], [], [], max(0.0, timeout_s))
        if not readable:
            if problem:
                raise WorkloadError(f"the process that starts containers {problem} (see {self._log})")
            raise TimeoutError
        packet = self._channel.recv(_MESSAGE_BYTES)
        if not packet:
            raise WorkloadError(f"the process that starts containers died (see {self._log})")
        self._take(json.loads(packet))

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"ready": seconds}:
                self._ready, self.warm_up_s = True, seconds
            case {"failed": text, "expected": True}:
                raise UsageError(text)
            case {"failed": text}:
                raise WorkloadError(f"the workload cannot be loaded: {text} (see {self._log})")
            case {"started": key, "pid": pid}:
                self._started[key] = pid
            case {"exited": key, "status": status}:
                self.exits[key] = status

    def close(self) -> None:
        """End it, and with it its containers. Idempotent."""
        self._channel.close()
        # Once it serves, the closed channel makes it kill and await its containers.
        if self._ready:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
        self._process.kill()
        self._process.wait()
