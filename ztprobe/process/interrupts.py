"""Ctrl-C, SIGTERM and a closed terminal end a command once, and never in the middle of a clean-up.

The first signal raises `Interrupted` in the main thread, and context managers undo what
the command has set up while it travels. From then on signals only print a notice. A
clean-up that runs without having been interrupted (the end of a good run) needs
`shielded`, which holds a signal back until the clean-up is through.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

__all__ = ("Interrupted", "catching", "shielded")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """The user (SIGINT), the system (SIGTERM) or a closed terminal (SIGHUP) ends the command."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@dataclass
class _State:
    notice: Callable[[str], None]
    shields: int = 0
    held_back: int | None = None
    raised: bool = False

    def on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self.raised or self.shields:
            if not self.raised and self.held_back is None:
                self.held_back = signum
            # The terminal may be gone, or be written to at this very moment; the clean-up goes on.
            with suppress(OSError, RuntimeError):
                self.notice("cleaning up; if it hangs: kill -9, then 'ztprobe clean'")
            return
        self.raised = True
        raise Interrupted(signum)


_state: _State | None = None


@contextmanager
def catching(notice: Callable[[str], None]) -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP inside the body into `Interrupted`; main thread only.

    A SIGHUP that is ignored already (nohup) stays ignored.

    :param notice: called with one line for every further signal.
    """
    global _state
    _state = _State(notice)
    previous = {
        signum: signal.signal(signum, _state.on_signal)
        for signum in _SIGNALS
        if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        _state = None


@contextmanager
def shielded() -> Iterator[None]:
    """Hold signals back until the body is through; nests. No effect outside the main thread.

    :raises Interrupted: at the end of the outermost body, if a signal came meanwhile.
    """
    state = _state
    if state is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    state.shields += 1
    try:
        yield
    finally:
        state.shields -= 1
        if not state.shields and state.held_back is not None and not state.raised:
            state.raised = True
            raise Interrupted(state.held_back)
