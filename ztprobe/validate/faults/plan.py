"""Which run each variant gets: a network and a way of connecting, in turns. Pure.

The four combinations come round within each failure class, so that each class meets all of them; a variant
that is this fault on some of them only takes the next of those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from ztprobe.errors import UsageError
from ztprobe.validate.faults.model import MODES, NETWORKS, Fault, Variant

__all__ = ("COMBINATIONS", "PlannedFault", "choose_faults", "plan_faults")

COMBINATIONS = tuple(product(NETWORKS, MODES))


@dataclass(frozen=True, kw_only=True)
class PlannedFault:
    """One run of one variant."""

    fault: Fault
    number: int  # of the variant, from 1
    variant: Variant
    network: str
    mode: str

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.fault.name}-{self.number}"

    @property
    def experiment(self) -> str:
        """As `ztprobe trace --experiment` takes it."""
        return f"{self.network}-sec{self.variant.level}"


def plan_faults(faults: Iterable[Fault]) -> list[PlannedFault]:
    """All variants in the catalogue's order; the same catalogue gives the same plan."""
    used: dict[str, dict[tuple[str, str], int]] = {}
    planned = []
    for fault in faults:
        uses = used.setdefault(fault.cause.partition(".")[0], dict.fromkeys(COMBINATIONS, 0))
        for number, variant in enumerate(fault.variants, 1):
            possible = [c for c in COMBINATIONS if c[0] in variant.networks and c[1] in variant.modes]
            chosen = min(possible, key=lambda combination: uses[combination])
            uses[chosen] += 1
            planned.append(
                PlannedFault(fault=fault, number=number, variant=variant, network=chosen[0], mode=chosen[1])
            )
    return planned


def choose_faults(planned: Sequence[PlannedFault], names: Sequence[str]) -> list[PlannedFault]:
    """Those of the named faults, or single runs by their names; all without names.

    The plan is made of the whole catalogue first, so that a run is the same whoever asks for it.

    :raises UsageError: one is unknown.
    """
    known = dict.fromkeys(one.fault.name for one in planned)
    for name in names:
        if name not in known and name not in (one.name for one in planned):
            raise UsageError(f"unknown fault {name!r}; valid ones: {', '.join(known)}")
    return [one for one in planned if not names or one.name in names or one.fault.name in names]
