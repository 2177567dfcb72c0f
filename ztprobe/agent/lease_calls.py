"""A node's leases asked for from another process: both sides of `ztprobe.agent.interface.Leases` as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ztprobe.agent.interface import LeaseRequest, Leases, LeaseState
from ztprobe.leases.following import Following, follow_state_from_dict, shifted
from ztprobe.leases.records import Lease, StepInForce, lease_from_dict, now_ns
from ztprobe.pods.model import Pod
from ztprobe.profile.model import profile_from_dict

__all__ = ("LEASE_CALLS", "LeaseCaller")


class LeaseCaller:
    """`ztprobe.agent.interface.Leases` by calls that something else carries."""

    def _ask(self, call: str, **arguments: Any) -> Any:
        """Make a call. :raises ZtprobeError: whatever it raised, or it could not be made."""
        raise NotImplementedError

    def plan_lease(self, wanted: LeaseRequest) -> Lease:
        """See `Leases`."""
        asked = {
            one.name: getattr(wanted, one.name)
            for one in dataclasses.fields(wanted)
            if one.name not in ("profile", "pods", "peers")
        }
        for name in ("lease_id", "follow"):  # an older agent does not know what is not wanted of it
            if asked[name] is None:
                del asked[name]
        asked["profile"] = dataclasses.asdict(wanted.profile)
        asked["pods"] = [pod.as_dict() for pod in wanted.pods]
        if wanted.follow is not None:
            asked["follow"] = dataclasses.asdict(wanted.follow)
        asked["peers"] = None if wanted.peers is None else [pod.as_dict() for pod in wanted.peers]
        return lease_from_dict(self._ask("plan_lease", wanted=asked))

    def begin_lease(self, lease: Lease) -> None:
        """See `Leases`."""
        self._ask("begin_lease", lease=lease.as_dict())

    def leases(self) -> list[LeaseState]:
        """See `Leases`; times are told by this machine's clock."""
        return [_state_here(one) for one in self._ask("leases")]

    def end_leases(self, ids: Sequence[str]) -> list[Lease]:
        """See `Leases`."""
        return [lease_from_dict(one) for one in self._ask("end_leases", ids=list(ids))]


def _request(said: Mapping[str, Any]) -> LeaseRequest:
    values = dict(said)
    values["profile"] = profile_from_dict(values["profile"])
    values["pods"] = tuple(Pod.from_dict(pod) for pod in values["pods"])
    if values["peers"] is not None:
        values["peers"] = tuple(Pod.from_dict(pod) for pod in values["peers"])
    if values.get("follow") is not None:
        values["follow"] = Following.from_dict(values["follow"])
    return LeaseRequest(**values)


def _state(one: LeaseState) -> dict[str, Any]:
    return {
        "lease": one.lease.as_dict(),
        "counted": one.counted,
        "step": None if one.step is None else dataclasses.asdict(one.step),
        "followed": None if one.followed is None else dataclasses.asdict(one.followed),
        "now_ns": now_ns(),
    }


def _state_here(said: Mapping[str, Any]) -> LeaseState:
    # CLOCK_BOOTTIME is each machine's own.
    here_ns = now_ns()
    ahead_ns = here_ns - said.get("now_ns", here_ns)
    lease = lease_from_dict(said["lease"])
    lease.created_ns += ahead_ns
    lease.expires_ns += ahead_ns
    step = None if said["step"] is None else StepInForce(**said["step"])
    if step is not None:
        until_ns = None if step.until_ns is None else step.until_ns + ahead_ns
        step = dataclasses.replace(step, since_ns=step.since_ns + ahead_ns, until_ns=until_ns)
    followed = said.get("followed")
    if followed is not None:
        followed = shifted(follow_state_from_dict(followed), ahead_ns)
    return LeaseState(lease=lease, counted=said["counted"], step=step, followed=followed)


# How each call's arguments are read, and its answer written.
LEASE_CALLS: Mapping[str, Callable[[Leases, Mapping[str, Any]], Any]] = {
    "plan_lease": lambda leases, said: leases.plan_lease(_request(said["wanted"])).as_dict(),
    "begin_lease": lambda leases, said: leases.begin_lease(lease_from_dict(said["lease"])),
    "leases": lambda leases, _: [_state(one) for one in leases.leases()],
    "end_leases": lambda leases, said: [one.as_dict() for one in leases.end_leases(said["ids"])],
}
