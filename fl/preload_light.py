"""Warm a parent process for clients that compute nothing: gRPC and numpy, neither PyTorch nor data.

Hundreds of synthetic clients are forked from it. The server, which does compute, imports PyTorch
for itself there; that takes it seconds, before it listens. What `fl.preload` says about threads
holds here too.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import fl.client
import fl.synthetic  # noqa: F401  imported for the children

__all__ = ("preload",)


def preload(dataset: str, data_dir: Path | None = None) -> None:
    """Import what a synthetic client needs; the data set is the server's business.

    :raises RuntimeError: other threads run; a fork would lose them.
    """
    if threading.active_count() > 1:
        raise RuntimeError(
            f"{threading.active_count()} Python threads run in the parent: fork(2) would lose them"
        )
    gc.collect()
    gc.freeze()
