"""Which reader of a log a framework has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ztprobe.frameworks.flower import FlowerLog
from ztprobe.frameworks.json_events import JsonEvents
from ztprobe.frameworks.nvflare import NvflareLog
from ztprobe.frameworks.source import Event, RoundsFrom, RoundSource

__all__ = ("FRAMEWORKS", "round_source", "wanted_lines")

# --framework -> what reads its log; ours are read whichever it is.
_READERS: dict[str, Sequence[Callable[[], RoundSource]]] = {
    "generic": (JsonEvents,),
    "flower": (FlowerLog,),
    "nvflare": (NvflareLog,),
}
FRAMEWORKS = tuple(_READERS)
_WANTED = {"flower": '"[ROUND 1/3]"', "nvflare": '"Round 0 started."'}


def round_source(framework: str) -> RoundSource:
    """A reader of this framework's log, or of any (``auto``), that takes our JSON events before it."""
    names = FRAMEWORKS if framework == "auto" else ("generic", framework)
    return _First([make() for name in dict.fromkeys(names) for make in _READERS[name]])


def wanted_lines(framework: str) -> str:
    """For people: what a log of this framework (or of any: ``auto``) would have had among its lines."""
    names = _WANTED if framework == "auto" else {framework}
    return " or ".join([*(_WANTED[name] for name in names if name in _WANTED), 'a JSON event "round_start"'])


class _First:
    """Offers each line to several readers; the first that recognises one is the log's from then on."""

    def __init__(self, sources: Sequence[RoundSource]) -> None:
        self._sources = list(sources)

    @property
    def kind(self) -> str:
        return self._sources[0].kind

    def take(self, line: bytes, received_ns: int) -> None:
        for source in self._sources:
            source.take(line, received_ns)
            if source.recognised:
                self._sources = [source]
                return

    def fresh(self) -> list[Event]:
        return self._sources[0].fresh() if self.recognised else []

    @property
    def recognised(self) -> bool:
        return self._sources[0].recognised

    def rounds_from(self) -> RoundsFrom:
        return self._sources[0].rounds_from()
