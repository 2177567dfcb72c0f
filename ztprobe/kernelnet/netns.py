"""Enter a network namespace from a thread, and leave it again.

A namespace is named by a path (``/run/netns/NAME`` or ``/proc/PID/ns/net``), so the
same code serves pods that this machine made and pods of a container runtime.
setns(2) acts on the calling thread alone; sockets keep the namespace they were
created in, so it is enough to be inside while opening one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ("CLONE_NEWNET", "CLONE_NEWNS", "entered", "inode", "setns", "unshare")

CLONE_NEWNS = 0x00020000  # include/uapi/linux/sched.h
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: int) -> None:
    if getattr(_libc, name)(*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace behind ``fd`` (setns(2); Python has it from 3.12)."""
    _call("setns", fd, kind)


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own (unshare(2))."""
    _call("unshare", flags)


@contextmanager
def entered(netns: Path | None) -> Iterator[None]:
    """Run the body inside ``netns`` (None: stay where we are), then return.

    :raises OSError: the path is not a namespace, or the caller is not privileged.
    """
    if netns is None:
        yield
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(target, CLONE_NEWNET)
        finally:
            os.close(target)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def inode(netns: Path) -> int:
    """The namespace's inode number, which kernel events carry as ``ns.inum`` (u32)."""
    return os.stat(netns).st_ino
