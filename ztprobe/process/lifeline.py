"""A process that works for another one, and must not outlive it."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ("end_with",)

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)


def end_with(parent: int, signum: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent's thread that started it ends.

    :param parent: its process id, as the parent itself knows it.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), signum)
