"""What rules and policies are compiled to: sets and ports by their numbers. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ztprobe.policy.model import IPAddress, Policy

__all__ = ("CompiledPolicy", "CompiledPort", "CompiledRule", "PolicyGroup")

_TIERS = ("Admin", "NetworkPolicy", "Baseline")


@dataclass(frozen=True, slots=True)
class CompiledPort:
    """A protocol and a range of the receiver's ports, of certain receivers only where a name said so."""

    protocol: str
    first: int
    last: int
    receivers: int | None = None  # the set of pods that have this number under the name; None: all
    name: str = ""
    unsure: bool = False  # about pods whose port names are not known: any number may be meant


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A rule of a policy in one direction."""

    number: int  # in its policy and direction
    action: str  # Accept | Deny | Pass
    peers: tuple[int, ...] | None  # sets, any of which; None: everyone
    ports: tuple[CompiledPort, ...] | None  # None: every port of every protocol


@dataclass(frozen=True, eq=False)
class CompiledPolicy:
    """A policy with its sets."""

    policy: Policy
    serial: int  # policies of one rank are read in this order
    subjects: int
    rules: dict[str, tuple[CompiledRule, ...]]
    names_ports: bool  # in a rule for ingress, where it is the subject's names that count

    @property
    def rank(self) -> tuple[int, int]:
        """Tier and priority: lower ones go first."""
        return _TIERS.index(self.policy.tier), self.policy.priority


@dataclass(frozen=True)
class PolicyGroup:
    """What endpoints of one class have in common in one direction: hashable, so that it names the class."""

    serials: tuple[int, ...]  # of the policies that select them, in reading order
    unsure: tuple[int, ...] = ()  # ... those of them that may select them
    # Where a rule for ingress names a port: the subject's own names; None: not known
    named_ports: frozenset[tuple[str, str, int]] | None = frozenset()
    # For ingress, where host-network pods or addresses outside are about: where the subject runs
    node: tuple[str | None, tuple[IPAddress, ...]] = (None, ())
