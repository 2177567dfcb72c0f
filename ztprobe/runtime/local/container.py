"""What happens in a container's process between fork and its program.

Standard library only, and nothing imported late: this runs in a freshly forked child
of either `ztprobe.runtime.local.zygote`. In order: die with the parent, join the cgroups,
enter the pod's network namespace, get a mount namespace of its own in which the pod's
``/etc/resolv.conf`` and volumes lie over the machine's files, then become the program.

The process keeps the machine's own file system, process ids and user: the local
runtime isolates what an experiment measures (network, memory) and nothing more.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

from ztprobe.kernelnet import netns
from ztprobe.process.lifeline import signalled_at_end_of
from ztprobe.runtime.local import mounts

__all__ = ("EXIT_NOT_STARTED", "become", "die_with_parent")

# As shells do: found, but could not be started.
EXIT_NOT_STARTED = 126
_PR_SET_NAME = 15  # include/uapi/linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process as soon as process ``parent`` (its thread that forked) ends."""
    if not signalled_at_end_of(parent, signal.SIGKILL):
        os._exit(EXIT_NOT_STARTED)


def become(spec: dict[str, Any], parent: int) -> NoReturn:
    """Turn this process into the container that ``spec`` describes; see `processes.ContainerSpec`."""
    try:
        die_with_parent(parent)
        _redirect(spec["stdout"], spec["stderr"])
        for join in spec["cgroup_procs"]:
            with open(join, "w") as procs:
                procs.write("0")
        _libc.prctl(_PR_SET_NAME, spec["pod"].encode()[:15], 0, 0, 0)
        target = os.open(spec["netns"], os.O_RDONLY)
        netns.setns(target, netns.CLONE_NEWNET)
        os.close(target)
        _own_mounts(spec["files"], spec["volumes"])
        os.environ.clear()
        os.environ.update(spec["env"])
        if spec["program"] is not None:
            os.execv(spec["program"], spec["command"])
    except BaseException as error:
        os.write(2, f"{' '.join(spec['command'])}: cannot be started: {error}\n".encode())
        os._exit(EXIT_NOT_STARTED)
    os._exit(_run_module(spec["module"], spec["command"]))


def _redirect(stdout: str, stderr: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for path, fd, how in ((os.devnull, 0, os.O_RDONLY), (stdout, 1, flags), (stderr, 2, flags)):
        opened = os.open(path, how, 0o644)
        os.dup2(opened, fd)
        os.close(opened)


def _own_mounts(files: dict[str, str], volumes: dict[str, str]) -> None:
    netns.unshare(netns.CLONE_NEWNS)
    # Private: nothing mounted from here on may spread to the machine.
    mounts.mount("none", "/", flags=mounts.MS_REC | mounts.MS_PRIVATE)
    # Opened before /run is covered: the sources lie below it.
    sources = {
        os.path.realpath(target): os.open(source, os.O_PATH) for target, source in (files | volumes).items()
    }
    # An empty /run, as images have: room for mount points, and no sockets of the machine's
    # own name services, which would answer instead of the pod's DNS server.
    mounts.mount("tmpfs", "/run", "tmpfs", data="mode=755,size=1m")
    for target, fd in sources.items():
        if target.startswith("/run/"):
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                os.makedirs(target, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        mounts.mount(f"/proc/self/fd/{fd}", target, flags=mounts.MS_BIND)
        os.close(fd)


def _run_module(module: str, command: list[str]) -> int:
    # The interpreter's own exit handlers are skipped by the caller: they belong to the parent.
    sys.argv = command[2:]
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  as long as the process lives
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    status: object
    try:
        status = importlib.import_module(module).main()
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else 0
