"""The reader of a framework's log by the framework's name, and what is said where a log is another's."""

from __future__ import annotations

from ztprobe.frameworks.flower import FlowerLog
from ztprobe.frameworks.json_events import JsonEvents
from ztprobe.frameworks.log_source import FrameworkLog
from ztprobe.frameworks.nvflare import NvflareLog
from ztprobe.frameworks.source import Event, RoundsFrom, RoundSource

__all__ = ("READERS", "AnyLog", "not_recognised", "source_of")

READERS: dict[str, type[FrameworkLog]] = {"flower": FlowerLog, "nvflare": NvflareLog}
_WANTED = {
    "flower": "Flower's, such as [ROUND 1/3]",
    "nvflare": "NVFlare's, such as Round 0 started.",
}


class AnyLog:
    """A RoundSource of a log of any framework, or with our events: whichever tells a round first."""

    def __init__(self, read_every_ns: int = 0) -> None:
        """:param read_every_ns: how often the log is looked at, which lines without a clock depend on."""
        self.kind = "log"
        # Our own events are the most exact, so they are asked first.
        self._readers: list[RoundSource] = [
            JsonEvents(read_every_ns),
            *(reader(read_every_ns) for reader in READERS.values()),
        ]

    @property
    def _chosen(self) -> RoundSource:
        return next((reader for reader in self._readers if reader.recognised), self._readers[0])

    def take(self, line: bytes, received_ns: int) -> None:
        """See `RoundSource.take`."""
        for reader in self._readers:
            reader.take(line, received_ns)

    def fresh(self) -> list[Event]:
        """See `RoundSource.fresh`. Once one reader has told a round, the others are not asked again."""
        for reader in self._readers:
            if events := reader.fresh():
                self._readers, self.kind = [reader], reader.kind
                return events
        return []

    @property
    def recognised(self) -> bool:
        """See `RoundSource.recognised`."""
        return any(reader.recognised for reader in self._readers)

    def rounds_from(self) -> RoundsFrom:
        """See `RoundSource.rounds_from`."""
        return self._chosen.rounds_from()


def source_of(framework: str, read_every_ns: int = 0) -> RoundSource:
    """The reader of a framework's log; of ``auto`` and ``generic`` one that finds out whose it is.

    :param read_every_ns: how often the log is looked at, which lines without a clock depend on.
    """
    reader = READERS.get(framework)
    return reader(read_every_ns) if reader is not None else AnyLog(read_every_ns)


def not_recognised(framework: str, log: str, lines: int) -> str:
    """One line for people: the log is not what it was taken for.

    :param log: how its user named it.
    :param lines: how many were read.
    """
    wanted = _WANTED.get(
        framework, "Flower's ([ROUND 1/3]), NVFlare's (Round 0 started.) or a JSON event with round_start"
    )
    if not lines:
        return f"{log}: nothing was written to it while it was read, expected lines of {wanted}"
    return (
        f"{log}: none of its {lines} lines is {wanted}; name the log of the server application "
        "(for Flower: flwr log RUN_ID | ztprobe trace --attach --events-from -), or --events-from none"
    )
