"""A security level that is put in force while rounds go on: asked for, carried out, recorded as seen.

Policies come at once, and to the connections that stand. Sidecars take the server's port over, and a client
speaks to its own from its next connection on.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ztprobe.errors import UsageError
from ztprobe.experiment.names import Experiment
from ztprobe.progress import Progress
from ztprobe.runtime.interface import NotProven, Runtime

__all__ = ("LevelSwitch", "SwitchRecord", "parse_level_switch")

_PATTERN = re.compile(r"sec([0-3])@round([0-9]{1,6})")
_FIRST = 2  # a round before it is under the experiment's own level


@dataclass(frozen=True, kw_only=True)
class LevelSwitch:
    """Another level, from a round's beginning on."""

    level: int
    round: int

    @property
    def name(self) -> str:
        """As it is written: ``sec1@round4``."""
        return f"sec{self.level}@round{self.round}"

    @property
    def slug(self) -> str:
        """As directories are called: ``to-sec1-round4``."""
        return f"to-sec{self.level}-round{self.round}"


def parse_level_switch(text: str, experiment: Experiment, rounds: int) -> LevelSwitch:
    """Read ``sec1@round4``.

    :param rounds: of the run.
    :raises UsageError: not that, or not to be had in a run of this experiment.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r}: expected a level and a round, such as sec1@round4")
    switch = LevelSwitch(level=int(match[1]), round=int(match[2]))
    if switch.level == experiment.level:
        raise UsageError(f"{text}: {experiment.name} has that level from the start")
    later = dataclasses.replace(experiment, level=switch.level)
    # Sidecars do not go again; and what shows that they came is a pod that policies keep away.
    if later.mutual_tls != experiment.mutual_tls and experiment.level != 0:
        raise UsageError(
            f"{text}: from sec{experiment.level} only sec{experiment.level ^ 1} can be reached while rounds"
            " go on; sidecars come to sec0 alone"
        )
    # A client connects through its sidecar in the first training after that, at the latest one round later.
    last = rounds - (later.mutual_tls and not experiment.mutual_tls)
    if not _FIRST <= switch.round <= last:
        raise UsageError(f"{text}: expected a round from {_FIRST} to {last} of the run's {rounds}")
    return switch


class SwitchRecord:
    """The switch of one run, carried out when its round begins.

    :param meta: run.json's content, which gets ``level_switch``: what was asked for, and when it was seen to
        be in force.
    :param started: called when there are new processes.
    """

    def __init__(
        self,
        switch: LevelSwitch | None,
        runtime: Runtime,
        meta: dict[str, Any],
        progress: Progress,
        started: Callable[[], None],
    ) -> None:
        self._started = started
        self._switch = switch
        self._runtime = runtime
        self._progress = progress
        self._told: dict[str, Any] = {}
        if switch is not None:
            self._told = meta["level_switch"] = {
                "to_level": switch.level,
                "round": switch.round,
                **dict.fromkeys(("due_ns", "from_ns", "sidecars_ns", "policies_ns", "proven_ns")),
                "proofs": [],
            }

    def take(self, event: Mapping[str, Any]) -> None:
        """An event of the server.

        :raises EnforcementError: its round has begun, and the level could not be put in force.
        """
        if self._switch is None or (event["event"], event.get("round")) != (
            "round_start",
            self._switch.round,
        ):
            return
        self._told |= {"due_ns": event["time_monotonic_ns"], "from_ns": time.monotonic_ns()}
        seen = self._runtime.switch_level(self._started)
        proofs = (*seen.enforcement.mtls, *seen.enforcement.network_policy)
        self._told |= {
            "sidecars_ns": seen.sidecars_ns,
            "policies_ns": seen.policies_ns,
            "proven_ns": time.monotonic_ns(),
            "proofs": [dataclasses.asdict(proof) for proof in proofs],
        }
        if seen.enforcement.failed:
            raise NotProven(seen.enforcement)
        late_ms = (max(filter(None, (seen.sidecars_ns, seen.policies_ns))) - self._told["due_ns"]) / 1e6
        self._progress.note(
            f"sec{self._switch.level} is in force, {late_ms:.0f} ms into round {self._switch.round}:"
            f" {'; '.join(f'{proof.name}: {proof.observed}' for proof in proofs)}"
        )
