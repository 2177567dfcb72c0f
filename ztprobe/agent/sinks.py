"""Where an agent's events go while it runs.

A sink is given batches of records as the kernel wrote them, kind by kind, in the order in which they
were read, and now and then what numbers in them stand for. A run directory's is here, the one of an
agent whose collector is elsewhere in `ztprobe.agent.spool`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ztprobe.rundir.batches import BatchWriter

__all__ = ("Owners", "RunDirSink", "Sink")


@dataclass
class Owners:
    """What numbers in events stand for."""

    pods: dict[int, str] = field(default_factory=dict)  # network namespace inode -> pod
    processes: dict[int, str] = field(default_factory=dict)  # process id -> pod/container

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            which: {str(number): name for number, name in names.items()}
            for which, names in (("pods", self.pods), ("processes", self.processes))
        }


class Sink(Protocol):
    """Takes an agent's events. All calls come from one thread at a time."""

    def write(self, kind: str, rows: np.ndarray) -> None:
        """Take a batch.

        :param rows: a structured array of the kind's type; it is the sink's from now on.
        """

    def change_owners(self, owners: Owners) -> None:
        """What came so far is of these owners; from now on a number may stand for something else."""

    def close(self, owners: Owners, pairs: list[Any]) -> None:
        """That was all. :param pairs: what proxies' threads tied together, from the probes' own map."""

    def losses(self) -> list[dict[str, Any]]:
        """What it could not keep, as entries of `ztprobe.agent.interface.Account.loss_log`."""


class RunDirSink:
    """Writes batches below a run directory, from which `ztprobe.rundir.batches` reads them back."""

    def __init__(self, writer: BatchWriter) -> None:
        self._writer = writer

    def write(self, kind: str, rows: np.ndarray) -> None:
        """See `Sink`."""
        self._writer.write(kind, rows)

    def change_owners(self, owners: Owners) -> None:
        """See `Sink`."""
        self._writer.end_part(owners.as_dict())

    def close(self, owners: Owners, pairs: list[Any]) -> None:
        """See `Sink`."""
        self._writer.end_part({**owners.as_dict(), "pairs": pairs})

    def losses(self) -> list[dict[str, Any]]:
        """See `Sink`: what a disk refuses ends the run instead."""
        return []
