"""What is asked: which components a replay takes away or replaces, and what that makes of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.results.study_files import option_words
from analysis.whatif.transport import CONGESTION_CONTROLS
from ztprobe.errors import UsageError
from ztprobe.profile.model import Profile

__all__ = ("REMOVABLE", "WhatIfCell", "WhatIfChange", "cell_of", "check_profile")

REMOVABLE = ("mtls", "policy", "profile", "polling")
_NONE = "net0"
# What a bridge and two pairs of interfaces of one machine take: the way without a profile.
_BARE_ONE_WAY_NS = 30_000


@dataclass(frozen=True, kw_only=True)
class WhatIfCell:
    """What tells the runs of one group from another's."""

    profile: str
    level: int
    clients: int
    reconnect: bool = False
    congestion_control: str = "cubic"
    options: tuple[str, ...] = ()  # of the workload, as studies name them: no question changes them

    @property
    def name(self) -> str:
        """As people read it: net2-sec3, net4-sec0 reconnecting, ..."""
        rest = [
            f"{self.clients} clients",
            *(["reconnecting"] if self.reconnect else []),
            *([] if self.congestion_control == "cubic" else [self.congestion_control]),
            *self.options,
        ]
        return f"{self.profile}-sec{self.level} ({', '.join(rest)})"


@dataclass(frozen=True, kw_only=True)
class WhatIfChange:
    """A question; without anything it asks for the run as it is."""

    without: frozenset[str] = frozenset()
    profile: Profile | None = None  # in place of the run's own
    reconnect: bool = False
    congestion_control: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(self.without - set(REMOVABLE)):
            raise UsageError(f"--without {unknown[0]}: expected one of {', '.join(REMOVABLE)}")
        if self.profile is not None and "profile" in self.without:
            raise UsageError(
                f"--profile {self.profile.name}: contradicts --without profile, which has none: give one"
            )
        if self.congestion_control not in (None, *CONGESTION_CONTROLS):
            raise UsageError(
                f"--congestion-control {self.congestion_control}: expected {' or '.join(CONGESTION_CONTROLS)}"
            )

    @property
    def words(self) -> tuple[str, ...]:
        """As on the command line."""
        return (
            *(f"--without {name}" for name in REMOVABLE if name in self.without),
            *([f"--profile {self.profile.name}"] if self.profile is not None else []),
            *(["--reconnect"] if self.reconnect else []),
            *([f"--congestion-control {self.congestion_control}"] if self.congestion_control else []),
        )

    @property
    def one_way_ns(self) -> int | None:
        """Of the new path; None: it stays."""
        if self.profile is not None:
            return _BARE_ONE_WAY_NS + round((self.profile.delay_ms or 0) * 1e6)
        return _BARE_ONE_WAY_NS if "profile" in self.without else None

    def target(self, cell: WhatIfCell) -> WhatIfCell:
        """Which cell a run of this one is asked to be. :raises UsageError: it has nothing to take away."""
        policy, mtls = cell.level % 2, cell.level // 2
        for name, has in (
            ("mtls", mtls),
            ("policy", policy),
            ("profile", cell.profile != _NONE),
            ("polling", False),
        ):
            if name in self.without and not has:
                raise UsageError(f"--without {name}: {cell.name} has none")
        if self.reconnect and cell.reconnect:
            raise UsageError(f"--reconnect: {cell.name} opens a connection each round already")
        if self.congestion_control == cell.congestion_control:
            raise UsageError(f"--congestion-control {cell.congestion_control}: {cell.name} has it already")
        if self.profile is not None and self.profile.name == cell.profile:
            raise UsageError(f"--profile {cell.profile}: {cell.name} has it already")
        profile = _NONE if "profile" in self.without else cell.profile
        return WhatIfCell(
            profile=self.profile.name if self.profile is not None else profile,
            level=policy * ("policy" not in self.without) + 2 * mtls * ("mtls" not in self.without),
            clients=cell.clients,
            reconnect=cell.reconnect or self.reconnect,
            congestion_control=self.congestion_control or cell.congestion_control,
            options=cell.options,
        )


def check_profile(profile: Profile) -> Profile:
    """One whose effect the replay can tell: a fixed delay and nothing else.

    :raises UsageError: it has more; the line says what, and why nothing is known of that.
    """
    unknown: Mapping[str, Any] = {
        "jitter": profile.jitter_ms,
        "loss": profile.loss_pct,
        "a rate": profile.rate_mbit,
        "duplicates": profile.duplicate_pct,
        "corruption": profile.corrupt_pct,
        "reordering": profile.reorder_pct,
        "a schedule": profile.schedule,
        "loss in bursts": profile.loss_gilbert_elliott,
    }
    if found := [name for name, value in unknown.items() if value]:
        raise UsageError(
            f"--profile {profile.name}: has {found[0]}, and how TCP answers that cannot be told from a run"
            " without it; profiles of a fixed delay can be asked for"
        )
    return profile


def cell_of(
    experiment: Mapping[str, Any],
    clients: int,
    reconnect: bool,
    congestion_control: str,
    fl: Mapping[str, Any] | None = None,
) -> WhatIfCell:
    """The cell of a run, whatever its data and seed."""
    return WhatIfCell(
        profile=str(experiment["profile"]),
        level=int(experiment["level"]),
        clients=clients,
        reconnect=reconnect,
        congestion_control=congestion_control,
        options=tuple(option_words(fl or {})),
    )
