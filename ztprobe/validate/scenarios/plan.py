"""What a scenario's run is made of, and the words that all plans share.

In every run the target client carries a constant known cost in training that makes it
critical; the other clients train beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ztprobe.profile.model import Profile
from ztprobe.validate.comparison import Measure, RunEvidence
from ztprobe.validate.inject.scene import Injector
from ztprobe.validate.model import Bound
from ztprobe.validate.observe import truth

__all__ = (
    "INTERFACE",
    "OTHER",
    "PORT",
    "SERVER",
    "TARGET",
    "Claim",
    "Plan",
    "both_ways",
    "critical",
    "per_round",
)

TARGET, OTHER, SERVER = "fl-client-1", "fl-client-0", "fl-server"
# What an injector puts there when the run has one: the server's port, the pod's own interface.
PORT, INTERFACE = "{port}", "{interface}"
_HEAD_START_MS = 400.0


class Claim(NamedTuple):
    """What one place of the ledger is held against."""

    where: str
    bound: Bound
    measure: Measure


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a scenario's run looks: built from the sizes, one per round.

    :param whole: interfaces (POD or POD/lo) at which packets are captured with all their bytes.
    """

    claims: tuple[Claim, ...]
    injectors: tuple[Injector, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    profile: Profile | None = None
    whole: tuple[str, ...] = ()


def per_round(values: Mapping[int, float], constant_ms: float = 0.0) -> str:
    """Milliseconds for every round, as `fl.injection` reads them; ``constant_ms`` is added to each."""
    last = max(values, default=0)
    return ",".join(f"{values.get(k, 0.0) + constant_ms:g}" for k in range(1, last + 60))


def critical(constant_ms: float = _HEAD_START_MS) -> dict[str, str]:
    """The environment that makes the target critical."""
    return {"FL_INJECT_COMPUTE_SLEEP_MS": f"{TARGET}={per_round({}, constant_ms)}"}


def both_ways(evidence: RunEvidence, number: int) -> list[truth.Link]:
    """The critical client's model and update."""
    client = evidence.rounds[number].critical_client or evidence.target
    return [evidence.link(number, client, down=down) for down in (True, False)]
