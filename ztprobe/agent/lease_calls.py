"""A node's leases asked for from another process: both sides of `ztprobe.agent.interface.Leases` as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ztprobe.agent.interface import LeaseRequest, Leases, LeaseState
from ztprobe.leases.records import Lease, StepInForce, lease_from_dict
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
        asked["profile"] = dataclasses.asdict(wanted.profile)
        asked["pods"] = [pod.as_dict() for pod in wanted.pods]
        asked["peers"] = None if wanted.peers is None else [pod.as_dict() for pod in wanted.peers]
        return lease_from_dict(self._ask("plan_lease", wanted=asked))

    def begin_lease(self, lease: Lease) -> None:
        """See `Leases`."""
        self._ask("begin_lease", lease=lease.as_dict())

    def leases(self) -> list[LeaseState]:
        """See `Leases`."""
        return [
            LeaseState(
                lease=lease_from_dict(one["lease"]),
                counted=one["counted"],
                step=None if one["step"] is None else StepInForce(**one["step"]),
            )
            for one in self._ask("leases")
        ]

    def end_leases(self, ids: Sequence[str]) -> list[Lease]:
        """See `Leases`."""
        return [lease_from_dict(one) for one in self._ask("end_leases", ids=list(ids))]


def _request(said: Mapping[str, Any]) -> LeaseRequest:
    values = dict(said)
    values["profile"] = profile_from_dict(values["profile"])
    values["pods"] = tuple(Pod.from_dict(pod) for pod in values["pods"])
    if values["peers"] is not None:
        values["peers"] = tuple(Pod.from_dict(pod) for pod in values["peers"])
    return LeaseRequest(**values)


def _state(one: LeaseState) -> dict[str, Any]:
    return {
        "lease": one.lease.as_dict(),
        "counted": one.counted,
        "step": None if one.step is None else dataclasses.asdict(one.step),
    }


# How each call's arguments are read, and its answer written.
LEASE_CALLS: Mapping[str, Callable[[Leases, Mapping[str, Any]], Any]] = {
    "plan_lease": lambda leases, said: leases.plan_lease(_request(said["wanted"])).as_dict(),
    "begin_lease": lambda leases, said: leases.begin_lease(lease_from_dict(said["lease"])),
    "leases": lambda leases, _: [_state(one) for one in leases.leases()],
    "end_leases": lambda leases, said: [one.as_dict() for one in leases.end_leases(said["ids"])],
}
