"""Warm a parent process that will be forked into servers and clients.

Importing torch, grpc and scikit-learn costs seconds and two cores would pay it six
times. A child forked from a warmed parent starts within milliseconds, trains at full
speed from its first step, and shares the data set's memory.

Two things must hold in the parent. No gRPC object may exist: its threads do not
survive fork(2) (importing it starts none). And torch must have run with one thread
only: an OpenMP team would be lost in the child, which then hangs at its first
parallel loop. The idle threads of libraries that expect to be forked (OpenBLAS,
jemalloc below pandas) do no harm.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import grpc  # noqa: F401  imported for the children
import numpy as np
import torch

import fl.client
import fl.edge
import fl.server
import fl.torch_trainer  # noqa: F401  likewise
from fl import data
from fl.model import Model
from fl.training import BATCH_SIZE, evaluate, train

__all__ = ("preload",)


def preload(dataset: str, data_dir: Path | None = None) -> None:
    """Import everything, read the data set into memory and run one training step and one evaluation.

    Call it in a process whose only Python thread is the main one, before forking.

    :raises FLError: unknown data set, or its files are missing or damaged.
    :raises RuntimeError: other threads run; a fork would lose them.
    """
    torch.set_num_threads(1)
    split = data.load(dataset, data_dir)
    model = Model(seed=0)
    few = np.arange(min(BATCH_SIZE, len(split.train)))
    train(model, split.train, few, seed=0, client_index=0, round_number=0)
    evaluate(model, split.test)
    if threading.active_count() > 1:
        raise RuntimeError(
            f"{threading.active_count()} Python threads run in the parent: fork(2) would lose them"
        )
    # A collection in a child would touch, and so copy, every page that holds a Python object.
    gc.collect()
    gc.freeze()
