"""Which reader of a log a framework has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ztprobe.frameworks.json_events import JsonEvents
from ztprobe.frameworks.source import Event, RoundsFrom, RoundSource

__all__ = ("FRAMEWORKS", "round_source")

# --framework -> what reads its log; ours are read whichever it is.
_READERS: dict[str, Sequence[Callable[[], RoundSource]]] = {"generic": (JsonEvents,)}
FRAMEWORKS = tuple(_READERS)


def round_source(framework: str) -> RoundSource:
    """A reader of this framework's log, or of any (``auto``), that takes our JSON events before it."""
    names = FRAMEWORKS if framework == "auto" else ("generic", framework)
    return _First([make() for name in dict.fromkeys(names) for make in _READERS[name]])


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
