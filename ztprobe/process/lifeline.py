"""A process that works for another one, and must not outlive it. Standard library only."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ("signalled_at_end_of",)

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)


def signalled_at_end_of(parent: int, signum: signal.Signals) -> bool:
    """Have the kernel send this process a signal when its parent's thread that started it ends.

    :param parent: its process id, as the parent itself knows it.
    :returns: whether it is there; if it has ended already, no signal will come.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    return os.getppid() == parent
