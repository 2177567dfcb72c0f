"""Unmodified NVIDIA FLARE: its proof of concept on this machine, and the job in nvflare_app/.

python -m tests.frameworks.nvflare --clients 2 --rounds 3 --out /tmp/nvflare
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.frameworks.flower import clock_of
from tests.frameworks.networks import network
from tests.frameworks.processes import Processes, environment, environment_of, processes, wait_for_port

__all__ = ("Nvflare", "deployment")

JOB = Path(__file__).parent / "nvflare_app" / "job.py"
PORT = 8002
_UP_S = 90


@dataclass
class Nvflare:
    """A deployment that is coming up and runs its job as soon as it is."""

    directory: Path
    server_pid: int
    client_pids: list[int]
    started: Processes

    @property
    def server_log(self) -> Path:
        """What the server prints, its job's process included."""
        return self.directory / "poc/example_project/prod_00/server/poc_console.log"

    @property
    def clock_directory(self) -> Path:
        """Where clients note their own clock."""
        return self.directory / "clock"

    def wait(self, timeout_s: float) -> None:
        """Until the job has ended.

        :raises RuntimeError: it failed or takes longer.
        """
        process = self.started.started["job"]
        try:
            process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(
                f"the job takes longer than {timeout_s:.0f} s: {self.started.tail('job')}"
            ) from error
        if "status FINISHED:COMPLETED" not in self.started.tail("job"):
            raise RuntimeError(f"the job failed: {self.started.tail('job')}")


@contextlib.contextmanager
def deployment(directory: Path, *, clients: int = 2, rounds: int = 3) -> Iterator[Nvflare]:
    """A server and its clients in a namespace of their own; gone with the context.

    :raises FileNotFoundError: NVFlare is not installed (make setup-frameworks).
    :raises RuntimeError, TimeoutError: it does not come up.
    """
    venv = environment("nvflare-2.9")
    for room in ("clock", "home"):
        (directory / room).mkdir(parents=True, exist_ok=True)
    env = environment_of(venv, HOME=str(directory / "home"), OMP_NUM_THREADS="1")
    with network("loopback", 1) as (place, _), processes(directory / "logs") as started:
        words = [str(JOB), str(directory), str(directory / "clock"), str(clients), str(rounds)]
        pid = started.start("job", place.command("python", *words), env, cwd=directory)
        try:
            wait_for_port(pid, PORT, _UP_S)
            server, sites = _found(directory, clients)
            yield Nvflare(directory, server, sites, started)
        finally:
            _end_all(directory)


def _running(directory: Path, what: str) -> list[int]:
    """Processes of the deployment: its own workspace stands in their commands."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if any(str(directory) in word for word in words) and any(what in word for word in words):
            found.append(process.info["pid"])
    return sorted(found)


def _found(directory: Path, clients: int) -> tuple[int, list[int]]:
    deadline = time.monotonic() + _UP_S
    while time.monotonic() < deadline:
        server, sites = _running(directory, ".server_train"), _running(directory, ".client_train")
        if server and len(sites) >= clients:
            return server[0], sites[:clients]
        time.sleep(0.2)
    raise TimeoutError("NVFlare's server and clients did not start")


def _end_all(directory: Path) -> None:
    """Its services are daemons of their own."""
    doomed = []
    for pid in _running(directory, "nvflare"):
        with contextlib.suppress(psutil.NoSuchProcess):
            doomed.append(psutil.Process(pid))
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(doomed, timeout=5)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def main() -> None:
    """Bring it up, run the job, end everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS")
    parser.add_argument("--out", type=Path, required=True, metavar="DIRECTORY")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with deployment(args.out.resolve(), clients=args.clients, rounds=args.rounds) as nvflare:
        print(json.dumps({"server": nvflare.server_pid, "clients": nvflare.client_pids}), flush=True)
        nvflare.wait(args.timeout)
        print("finished", len(clock_of(nvflare.clock_directory)), "events", flush=True)


if __name__ == "__main__":
    main()
