"""What server and client share as processes."""

from __future__ import annotations

import signal
from types import FrameType

from fl.errors import Terminated

__all__ = ("raise_on_sigterm",)


def raise_on_sigterm() -> None:
    """Turn SIGTERM into `Terminated` in the main thread, so that connections are closed on the way out."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(_signum: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; a second must not cut the clean-up short
    raise Terminated("terminated")
