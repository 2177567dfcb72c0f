"""What is run: a network profile, a security level, a data distribution and a seed, under one name.

The name is ``net<profile>-sec<level>[-iid|-noniid][-s<seed>]``; what it leaves out is iid
and seed 0. The canonical name leaves the defaults out again, so that two spellings of one
experiment cannot become two experiments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ztprobe.errors import UsageError

__all__ = ("DISTRIBUTIONS", "LEVELS", "MAX_SEED", "Experiment", "parse_baseline", "parse_experiment")

LEVELS = {0: "none", 1: "NetworkPolicy", 2: "mutual TLS", 3: "NetworkPolicy and mutual TLS"}
DISTRIBUTIONS = ("iid", "noniid")
MAX_SEED = 2**32 - 1  # the widest that numpy and torch both take

_UNSHAPED_PROFILE = "net0"
_PATTERN = re.compile(r"(net[0-9a-z]+)-sec([0-9]+)(?:-(iid|noniid))?(?:-s([0-9]+))?")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One cell of the experiment table; validated at construction."""

    profile: str  # net0, net2a, ...
    level: int  # 0..3
    distribution: str = "iid"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UsageError(f"security level sec{self.level}: expected {_levels()}")
        if self.distribution not in DISTRIBUTIONS:
            raise UsageError(f"distribution {self.distribution!r}: expected {' or '.join(DISTRIBUTIONS)}")
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed {self.seed}: expected 0 to {MAX_SEED}")

    @property
    def name(self) -> str:
        """The canonical name, e.g. ``net2-sec3`` or ``net0-sec1-noniid-s4``."""
        distribution = "" if self.distribution == "iid" else f"-{self.distribution}"
        seed = f"-s{self.seed}" if self.seed else ""
        return f"{self.profile}-sec{self.level}{distribution}{seed}"

    @property
    def network_policy(self) -> bool:
        """Whether this level has NetworkPolicies in force."""
        return self.level in (1, 3)

    @property
    def mutual_tls(self) -> bool:
        """Whether this level has sidecars that speak mutual TLS."""
        return self.level in (2, 3)

    @property
    def shaped(self) -> bool:
        """Whether the network profile does anything."""
        return self.profile != _UNSHAPED_PROFILE

    def default_baseline(self) -> Experiment | None:
        """What overhead is measured against: same data and seed, nothing in the way.

        None for an experiment that has nothing in its way itself.
        """
        if not self.shaped and self.level == 0:
            return None
        return replace(self, profile=_UNSHAPED_PROFILE, level=0)


def parse_experiment(text: str, profiles: Sequence[str], *, seed: int | None = None) -> Experiment:
    """Read an experiment's name.

    :param profiles: the names of the network profiles there are.
    :param seed: asked for apart from the name.
    :raises UsageError: not a name, an unknown profile or level (the valid ones are listed),
        or the name carries another seed than ``seed``.
    """
    return _parse(text, profiles, defaults=Experiment(profile=_UNSHAPED_PROFILE, level=0), seed=seed)


def parse_baseline(
    text: str, experiment: Experiment, profiles: Sequence[str], *, seed: int | None = None
) -> Experiment:
    """Read a baseline's name; the distribution and seed that it leaves out are the experiment's.

    Otherwise ``--baseline net0-sec0`` would compare non-IID rounds with IID ones unasked.

    :raises UsageError: as `parse_experiment`.
    """
    return _parse(text, profiles, defaults=experiment, seed=seed)


def _parse(text: str, profiles: Sequence[str], *, defaults: Experiment, seed: int | None) -> Experiment:
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UsageError(
            f"experiment {text!r}: expected net<profile>-sec<level>[-iid|-noniid][-s<seed>] "
            f"with the profiles {', '.join(profiles)} and the levels {_levels()}"
        )
    profile, level, distribution, named_seed = match.groups()
    if profile not in profiles:
        known = ", ".join(profiles)
        raise UsageError(f"experiment {text!r}: no network profile {profile}; there are {known}")
    if int(level) not in LEVELS:
        raise UsageError(f"experiment {text!r}: no security level sec{level}; there are {_levels()}")
    if seed is not None and named_seed is not None and seed != int(named_seed):
        raise UsageError(f"experiment {text!r} names seed {int(named_seed)} and --seed says {seed}: give one")
    chosen = seed if seed is not None else int(named_seed) if named_seed is not None else defaults.seed
    return Experiment(
        profile=profile,
        level=int(level),
        distribution=distribution or defaults.distribution,
        seed=chosen,
    )


def _levels() -> str:
    return ", ".join(f"sec{level}" for level in LEVELS)
