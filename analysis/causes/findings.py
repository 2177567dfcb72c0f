"""What a recogniser says: a cause with its evidence, what it cost and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.causes.classes import CAUSES, CauseClass

__all__ = ("Cause", "Moment", "Remedial", "Trouble", "cause_of")


@dataclass(frozen=True, kw_only=True, order=True)
class Moment:
    """One line of the evidence; `ts_ns` in CLOCK_MONOTONIC nanoseconds."""

    ts_ns: int
    pod: str
    event: str  # what happened, as the kernel, a counter or a log had it
    shows: str  # what follows from it


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A round that failed, stalled or was slower than its peers, or set-up that did not get through."""

    kind: str  # failed | set-up | unfinished | missing | vanished | slow | stall
    rounds: tuple[int, ...]  # 0: set-up
    from_ns: int
    to_ns: int
    pods: tuple[str, ...]  # whose doing or undoing it is, as far as the server's log tells; empty: not known
    words: str
    excess_s: Mapping[str, float] = field(default_factory=dict)  # by component, over its peers' median


@dataclass(frozen=True, kw_only=True)
class Remedial:
    """What to change."""

    words: str
    objects: tuple[dict[str, Any], ...] = ()  # Kubernetes objects for `kubectl apply`


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A cause as a recogniser sees it.

    `strength` says how sure the evidence makes it (0..1), before causes are held against each other:
    0.9 and more, the kernel's own word for exactly this; 0.7, the kernel's word for something that has few
    other reasons; 0.5, inferred from silence or timing; less, possible.
    """

    of: CauseClass
    summary: str
    strength: float
    moments: tuple[Moment, ...]
    remedial: Remedial
    pods: tuple[str, ...] = ()  # that it is about: the one that is broken first
    component: str = "residual"  # where a ledger puts the time that it costs
    from_ns: int = 0  # when it began to act; 0: the first moment
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def began_ns(self) -> int:
        return self.from_ns or min((one.ts_ns for one in self.moments), default=0)


def cause_of(identifier: str, **said: Any) -> Cause:
    """A cause of the class with this id. :raises KeyError: there is no such class."""
    return Cause(of=CAUSES[identifier], **said)
