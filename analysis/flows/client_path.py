"""One client's way through one phase of a round."""

from __future__ import annotations

from dataclasses import dataclass, field

from analysis.flows.exchanges import Handed
from analysis.flows.turns import Turn
from analysis.intervals import Interval, Segment

__all__ = ("ClientPath",)


@dataclass
class ClientPath:
    """One client's hops in one phase, downstream first, so that the first to cover an instant owns it."""

    client: str
    base: list[Segment] = field(default_factory=list)
    arrival_ns: int | None = None  # the server had all of the update
    handing_ns: int = 0  # it began to hand its update over
    handed_ns: int | None = None  # whom it speaks with had it
    has_update: bool = False  # the client sent a message back, and no mere result
    compute: Interval | None = None
    # ... once it had read its message: what its own clock includes of that is not seen.
    loads_late: bool = False
    imports: list[Interval] = field(default_factory=list)  # a task's process loaded code
    message_bytes: int = 0
    turns: list[Turn] = field(default_factory=list)  # large ones, for repairs

    def could_be_had_ns(self, handed: Handed, taken_ns: int) -> int:
        """From when on a message could be had of a hub: once that has seen to all of it, unless it handed it
        on before. What it takes for that is the hub's.

        :param taken_ns: when it was handed on.
        """
        if handed.stored_ns > taken_ns:
            return min(handed.had_ns, taken_ns)
        self.base.insert(0, Segment(handed.had_ns, handed.stored_ns, "store_and_forward"))
        return handed.stored_ns
