"""A fault as a value: the cause that a diagnosis has to name, and how three variants bring it about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ztprobe.profile.model import Profile
from ztprobe.runtime.local.runtime import LocalRuntime
from ztprobe.validate.faults.objects import Edit
from ztprobe.validate.inject.scene import Injector

__all__ = ("MODES", "NETWORKS", "NOTHING", "Fault", "LeftOut", "Preparation", "Variant")

NETWORKS = ("net0", "net2")
NOTHING = "nothing"  # in place of a cause
MODES = ("persistent", "reconnecting")

# Changes something between the pods' birth and their workload's, and returns how to take it back (None: it
# goes with the pods). It gets a directory of its own for what it has to write.
Preparation = Callable[[LocalRuntime, Path], Callable[[], None] | None]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to bring a cause about.

    :param what: in words.
    :param edit: of the objects, before anything is made of them.
    :param prepare: once the pods are there.
    :param acts: done from outside while the rounds go on, and undone.
    :param shows: a pattern that what was observed has to match, or the fault was not there.
    :param networks: on which of them it is that fault; likewise ``modes``.
    :param bulk: the published model's 4.8 MB instead of 13.7 kB a message.
    """

    what: str
    shows: str
    level: int = 0
    edit: Edit | None = None
    prepare: tuple[Preparation, ...] = ()
    acts: tuple[Injector, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    profile: Callable[[Profile], Profile] | None = None
    networks: tuple[str, ...] = NETWORKS
    modes: tuple[str, ...] = MODES
    clients: int = 2
    edges: int = 0  # edge aggregators between server and clients
    rounds: int = 3
    bulk: bool = False
    compute_ms: float = 100.0
    deadline_s: float = 9.0
    offloads: bool = False


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One cause in its variants."""

    cause: str  # an id of analysis.causes.classes
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return "healthy" if self.cause == NOTHING else self.cause.replace(".", "-").replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A cause that this machine cannot produce: what was tried, and what it said."""

    cause: str
    tried: str
    said: str
