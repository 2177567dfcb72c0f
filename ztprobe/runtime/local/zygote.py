"""A small process that forks containers on request: ``python -m ztprobe.runtime.local.zygote``.

Two of them serve a run. One is bare and ready within 50 ms: it starts programs
(haproxy, dnsmasq). The other first imports the workload, which takes seconds, and
then forks Python containers that need not import anything; it is started early so
that this overlaps with the rest of the set-up. Both exist because forking from the
command line's own process, with its threads and its gigabyte of analysis libraries,
is neither safe nor cheap, and so that torch never enters that process.

Messages are JSON, one per packet, on a SOCK_SEQPACKET socket. In: a container spec
(`processes.ContainerSpec`). Out: ``{"ready": seconds}`` or ``{"failed": text,
"expected": bool}`` once; ``{"started": key, "pid": n}``; ``{"exited": key,
"status": n}`` (negative: the signal). Every container dies with this process, and
this process with its parent.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from ztprobe.runtime.local import container

__all__ = ("main",)

_MESSAGE_BYTES = 1 << 16


def main(arguments: dict[str, Any]) -> int:
    """Warm up, then serve until the other end of the socket closes.

    :param arguments: socket (fd), parent (pid), cgroup_procs (paths to join), preload
        (None, or module, dataset and data_dir).
    """
    container.die_with_parent(arguments["parent"])
    for join in arguments["cgroup_procs"]:
        Path(join).write_text("0")
    channel = socket.socket(fileno=arguments["socket"])
    wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # The parent may hold signals back while it sets up; containers must not inherit that.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup_write)
    if not _warm_up(channel, arguments["preload"]):
        return 1
    running: dict[int, str] = {}
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wakeup:
                with contextlib.suppress(BlockingIOError):
                    os.read(wakeup, 4096)
                _reap(channel, running)
                continue
            packet = channel.recv(_MESSAGE_BYTES)
            if not packet:
                _end(running)
                # At once: taking torch apart in order would cost the end of every run 0.4 s.
                os._exit(0)
            spec = json.loads(packet)
            pid = _fork(spec, channel, (wakeup, wakeup_write))
            running[pid] = spec["key"]
            _send(channel, {"started": spec["key"], "pid": pid})


def _warm_up(channel: socket.socket, preload: dict[str, Any] | None) -> bool:
    started = time.monotonic()
    try:
        if preload is not None:
            data_dir = None if preload["data_dir"] is None else Path(preload["data_dir"])
            importlib.import_module(preload["module"]).preload(preload["dataset"], data_dir)
    except Exception as error:
        # The workload's own errors carry an exit code and one clear line; others are faults.
        expected = hasattr(error, "exit_code")
        if not expected:
            traceback.print_exc()
        _send(channel, {"failed": str(error) or type(error).__name__, "expected": expected})
        return False
    _send(channel, {"ready": time.monotonic() - started})
    return True


def _fork(spec: dict[str, Any], channel: socket.socket, pipe: tuple[int, int]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        channel.close()
        for fd in pipe:
            os.close(fd)
        container.become(spec, parent)
    return pid


def _reap(channel: socket.socket, running: dict[int, str]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            key = running.pop(pid, None)
            if key is not None:
                _send(channel, {"exited": key, "status": os.waitstatus_to_exitcode(status)})


def _end(running: dict[int, str]) -> None:
    # Waited for here, because whoever inherits them may be slow to.
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    # A closed channel ends the loop at its next turn.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        channel.send(json.dumps(message).encode())


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
