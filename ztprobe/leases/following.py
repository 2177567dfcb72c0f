"""How a lease goes on to hold for what its selector means, and since when each pod is under it.

The keeper of a lease hears of further pods, puts its profile on them, and writes down beside the lease
(``following.json``) since when each pod is under it and what it had sent by then. That is told, and nothing
is undone by it: what has to be undone stands in the lease itself, before it is touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ("FollowState", "Following", "PodSince", "follow_state_from_dict", "shifted")


@dataclass(frozen=True, kw_only=True)
class Following:
    """Where the keeper of a lease hears of further pods, and how it is to meet them."""

    runtime: str  # local | kubernetes
    node: str = ""  # of a cluster: the one whose pods these are, by the API
    runs: tuple[str, ...] = ()  # of the local runtime: those whose pods these are
    at: str = "auto"  # see `ztprobe.emulation.attach_points`
    replace: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Following:
        """:raises TypeError: not what `dataclasses.asdict` gives."""
        return cls(**{**data, "runs": tuple(data.get("runs", ()))})


@dataclass(frozen=True, kw_only=True)
class PodSince:
    """A pod under a lease. Its packets are those that its interface has sent, whoever in it sent them."""

    pod: str  # namespace/name
    since_ns: int  # CLOCK_BOOTTIME: the profile was in force on it
    came_later: bool  # than the lease
    sent_before: int | None  # right before the profile was put on it; None: that was not counted
    sent_after: int | None  # right after that; 0: the profile was there before its first packet
    # So long could it send without, at most: since it was last seen to have no process or no interface.
    # None: nobody had looked before that.
    gap_ms: float | None


@dataclass(frozen=True, kw_only=True)
class FollowState:
    """Which pods are under a lease since when, and which are not, as its keeper wrote it down last."""

    pods: tuple[PodSince, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)  # pod that the selector means -> why
    problem: str = ""  # why further pods are not heard of just now; empty: they are


def follow_state_from_dict(data: Mapping[str, Any]) -> FollowState:
    """:raises (KeyError, TypeError): not what `dataclasses.asdict` gives."""
    pods = tuple(PodSince(**one) for one in data["pods"])
    return FollowState(**{**data, "pods": pods})


def shifted(held: FollowState, ahead_ns: int) -> FollowState:
    """By another machine's clock. :param ahead_ns: how far that one is ahead."""
    pods = tuple(dataclasses.replace(one, since_ns=one.since_ns + ahead_ns) for one in held.pods)
    return dataclasses.replace(held, pods=pods)
