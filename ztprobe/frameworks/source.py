"""What turns the lines of a log into round events, and what a framework was recognised by.

An *event* is what rounds.jsonl holds, one JSON object a line: ``event`` (``round_start``, ``round_end``;
where the source tells them ``send_start``, ``update_received`` with ``client_id``, ``wait_end``,
``aggregate_end``, ``evaluate_end``), ``round`` (an integer), ``time_unix_ns`` and ``time_monotonic_ns``
(CLOCK_MONOTONIC, the clock of the kernel's events). Whatever else the source knows may stand beside them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

__all__ = ("Event", "Framework", "RoundSource", "RoundsFrom")

Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Framework:
    """Which framework a deployment is of, and how that shows."""

    name: str  # flower | nvflare | generic
    evidence: tuple[str, ...] = ()  # for people, each one fact that was seen; generic needs none
    version: str | None = None  # where the evidence tells it

    def as_dict(self) -> dict[str, Any]:
        """As run.json has it."""
        return asdict(self) | {"evidence": list(self.evidence)}


@dataclass(frozen=True, kw_only=True)
class RoundsFrom:
    """Where a run's rounds come from, and how exact their boundaries are."""

    source: str  # events | log | traffic
    uncertainty_ns: int  # of a boundary, to either side
    detail: str  # for people: what was read, by which clock

    def as_dict(self) -> dict[str, Any]:
        """As run.json has it."""
        return asdict(self)


class RoundSource(Protocol):
    """Takes a log's lines as they are received and gives round events; holds no file and no thread."""

    @property
    def kind(self) -> str:
        """events: the application's own clock stands in each; log: words of a framework's log."""
        ...

    def take(self, line: bytes, received_ns: int) -> None:
        """A whole line without its end, as the log has it: colours and kubelet's prefix may be in it.

        :param received_ns: when it was read, CLOCK_MONOTONIC; the only clock where lines carry none.
        """
        ...

    def fresh(self) -> list[Event]:
        """The events since the last call, in the order of time.

        :raises WorkloadError: a line begins like an event and is none.
        """
        ...

    @property
    def recognised(self) -> bool:
        """Whether any line so far was one of this framework's; a log without one is another's."""
        ...

    def rounds_from(self) -> RoundsFrom:
        """How exact the boundaries so far are; may change while lines come (a clock was found in them)."""
        ...
