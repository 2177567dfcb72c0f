"""Why a connection is allowed or denied: the verdict of one connection with the rules that decide it.

Reads the compiled form that bulk verdicts read, for one pair of endpoints, and keeps what it met: the
policies that select each end, the rules that match, the facts that are missing. Where the objects
come from (files, a saved run, a cluster) is nothing to it. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ztprobe.errors import UsageError
from ztprobe.policy.compiled import Compiled
from ztprobe.policy.model import DIRECTIONS, IPAddress, Objects
from ztprobe.policy.selections import Endpoint
from ztprobe.policy.sides import (
    ALLOWED,
    DENIED,
    NOT_APPLICABLE,
    UNDECIDABLE,
    Side,
    hairpin,
    judge_side,
    listed,
)

__all__ = ("Explainer", "Explanation")


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The verdict on a new connection."""

    source: Endpoint
    target: Endpoint
    protocol: str
    port: int
    verdict: str
    egress: Side
    ingress: Side
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sides(self) -> tuple[Side, Side]:
        """Egress, then ingress."""
        return self.egress, self.ingress


class Explainer:
    """Objects, ready to be asked why."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.compiled = Compiled(objects)
        self._pods = {pod.id: pod for pod in objects.pods}
        self._owners: dict[IPAddress, list[str]] = {}
        for pod in objects.pods:
            for address in pod.addresses if not pod.ended else ():
                self._owners.setdefault(address, []).append(pod.id)

    def slots_of(self, end: str) -> tuple[int, ...]:
        """The slots that ``NAMESPACE/POD`` or an address means.

        :raises UsageError: no such pod, a pod that has ended, or an address that two pods have.
        """
        try:
            address = ipaddress.ip_address(end)
            if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
                address = address.ipv4_mapped
        except ValueError:
            return self._slots_of_pod(end)
        owners = self._owners.get(address, [])
        selectable = [pod for pod in owners if not self._pods[pod].host_network]
        if len(selectable) > 1:
            raise UsageError(f"{end}: the address of one pod expected, it is that of {listed(selectable)}")
        for owner in selectable or owners[:1]:
            slots = self.compiled.slots[owner]
            return tuple(s for s in slots if self.compiled.selections.endpoints[s].address == address)
        return (self.compiled.slot_of_address(address),)

    def _slots_of_pod(self, end: str) -> tuple[int, ...]:
        pod = self._pods.get(end)
        if pod is None:
            if "/" not in end:
                raise UsageError(f"{end}: expected NAMESPACE/POD or an IP address")
            known = listed(sorted(self._pods)) or "none"
            raise UsageError(f"{end}: no such pod among the objects given; they have {known}")
        if pod.ended:
            raise UsageError(f"{end}: this pod has ended, it has no connections any more")
        return self.compiled.slots[end]

    def explain(self, source: str, target: str, protocol: str, port: int) -> Explanation:
        """The verdict on a new connection, and why.

        :param source: ``NAMESPACE/POD``, or an IP address; so is ``target``.
        :param protocol: TCP, UDP or SCTP.
        :param port: the target's.
        :raises UsageError: see `slots_of`; or the two have no address family in common.
        """
        endpoints = self.compiled.selections.endpoints
        pairs = [
            (s, t)
            for s in self.slots_of(source)
            for t in self.slots_of(target)
            if _one_family(endpoints[s], endpoints[t])
        ]
        if not pairs:
            raise UsageError(f"{source} -> {target}: they have addresses of different families only")
        found = [self.explain_slots(s, t, protocol, port) for s, t in pairs]
        first = found[0]
        if all(one.verdict == first.verdict for one in found):
            return first
        words = ", ".join(f"{one.verdict} over {_family(one)}" for one in found)
        chosen = next((one for one in found if one.verdict in (DENIED, UNDECIDABLE)), first)
        fact = f"the address family: {words} (name an address)"
        return replace(chosen, verdict=UNDECIDABLE, missing=(fact, *chosen.missing))

    def explain_slots(self, source: int, target: int, protocol: str, port: int) -> Explanation:
        """The verdict between two endpoints, by their slots."""
        compiled = self.compiled
        one, other = (compiled.selections.endpoints[slot] for slot in (source, target))
        if (one.pod is not None and one.pod is other.pod) or _loopback(other):
            sides = [hairpin(compiled, d, s) for d, s in zip(DIRECTIONS, (source, target), strict=True)]
        elif (service := self._service_of(other)) is not None:
            fact = f"which pod the proxy chooses for {service}: policies judge that pod's address, name it"
            sides = [
                Side(
                    direction=d,
                    end=end,
                    verdict=UNDECIDABLE,
                    reason=f"{other.name} is {service}",
                    missing=(fact,),
                )
                for d, end in zip(DIRECTIONS, (one, other), strict=True)
            ]
        else:
            sides = [
                judge_side(compiled, direction, subject, peer, target, protocol, port)
                for direction, subject, peer in (("egress", source, target), ("ingress", target, source))
            ]
        verdicts = [side.verdict for side in sides]
        verdict = next(
            (word for word in (DENIED, UNDECIDABLE, ALLOWED) if word in verdicts),
            NOT_APPLICABLE,
        )
        missing = tuple(dict.fromkeys(fact for side in sides for fact in side.missing))
        return Explanation(
            source=one,
            target=other,
            protocol=protocol,
            port=port,
            verdict=verdict,
            egress=sides[0],
            ingress=sides[1],
            missing=missing if verdict == UNDECIDABLE else (),
            notes=tuple(_notes(one, other)),
        )

    def _service_of(self, end: Endpoint) -> str | None:
        if end.pod is not None or end.address is None:
            return None
        for service in self.objects.services:
            if end.address in service.addresses:
                return f"the address of Service {service.namespace}/{service.name}"
        return None


def _one_family(one: Endpoint, other: Endpoint) -> bool:
    if one.address is None or other.address is None:
        return True
    return one.address.version == other.address.version


def _family(found: Explanation) -> str:
    address = found.source.address or found.target.address
    return "any family" if address is None else f"IPv{address.version}"


def _notes(one: Endpoint, other: Endpoint) -> Iterable[str]:
    for end in (one, other):
        if end.pod is None and end.address is not None:
            if not _loopback(end):
                yield f"{end.name} is no pod of the objects given: taken as an address outside the cluster"
        elif end.pod is not None and end.pod.host_network:
            yield f"{end.name} uses its node's network: no policy selects it, as a peer only networks mean it"


def _loopback(end: Endpoint) -> bool:
    return end.pod is None and end.address is not None and end.address.is_loopback
