"""The workload's server and clients as processes on loopback, forked from one warmed parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

__all__ = ("REPO_DIR", "Parent", "Process", "Start", "parent", "start", "start_client", "start_server")

REPO_DIR = Path(__file__).resolve().parents[2]

# One JSON request a line: {"module", "env", "out", "netns"} forks and answers the pid, {"wait"} answers the
# status.
PARENT = """
import importlib, json, os, sys
from fl.preload import preload
preload("digits")
print("warm", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    if request.get("netns"):
        from ztprobe.kernelnet import netns
        netns.setns(os.open(request["netns"], os.O_RDONLY), netns.CLONE_NEWNET)
    for fd, suffix in ((1, ""), (2, ".err")):
        os.dup2(os.open(request["out"] + suffix, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
    os.environ.update(request["env"])
    os._exit(importlib.import_module(request["module"]).main())
"""


@dataclass
class Process:
    """A forked server or client."""

    parent: Parent
    pid: int
    out: Path

    def wait(self) -> int:
        return int(self.parent.ask({"wait": self.pid}))

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = self.out.read_text().splitlines(keepends=True) if self.out.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @property
    def stderr(self) -> str:
        return self.out.with_name(self.out.name + ".err").read_text()

    def until(self, event: str, round_number: int | None = None) -> dict[str, Any]:
        """The first such event, waited for at most 30 s."""
        give_up = time.monotonic() + 30
        while time.monotonic() < give_up:
            for line in self.events:
                if line["event"] == event and round_number in (None, line["round"]):
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no {event} in {self.out}: {self.events[-3:]} {self.stderr}")


class Parent:
    """The warmed process and what it forked."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT],
            cwd=REPO_DIR,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "warm\n"

    def ask(self, request: dict[str, Any]) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


Start = Callable[..., Process]


@pytest.fixture(scope="module")
def parent() -> Iterator[Parent]:
    warm = Parent()
    yield warm
    assert warm.process.stdin is not None
    warm.process.stdin.close()
    warm.process.wait(10)


@pytest.fixture
def start(parent: Parent, tmp_path: Path) -> Iterator[Start]:
    """`start("fl.server", "name", VARIABLE="value")`; what still runs at the end is killed."""
    started: list[Process] = []

    def fork(module: str, name: str, netns: Path | None = None, **env: str) -> Process:
        out = tmp_path / name
        where = {} if netns is None else {"netns": str(netns)}
        pid = int(parent.ask({"module": module, "env": env, "out": str(out), **where}))
        process = Process(parent, pid, out)
        started.append(process)
        return process

    yield fork
    for process in started:
        # A pid that was waited for is no child of the parent's any more: look before killing.
        with contextlib.suppress(OSError, IndexError):
            status = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            if int(status[1]) == parent.process.pid:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()


def start_server(start: Start, netns: Path | None = None, **env: str) -> tuple[Process, str]:
    """A server on a free port of the loopback and its address."""
    settings = {"FL_LISTEN": "127.0.0.1:0", "FL_ROUND_DEADLINE_S": "30", "FL_EVAL_EVERY": "1"}
    server = start("fl.server", "server", netns=netns, **settings | env)
    return server, f"127.0.0.1:{server.until('run_start')['port']}"


def start_client(start: Start, index: int, server: str, netns: Path | None = None, **env: str) -> Process:
    identity = {"POD_NAME": f"fl-client-{index}", "JOB_COMPLETION_INDEX": str(index), "FL_SERVER": server}
    return start("fl.client", f"client-{index}", netns=netns, **identity | env)
