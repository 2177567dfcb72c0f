"""Show, before round 1, that a cluster enforces the level's policies, or that none is in its way.

A connection that fails proves nothing where nobody listens: a closed port and a policy that rejects look the
same. So for the time of an attempt we listen ourselves, in the network of the pod that is tried, and ask from
in there whether we are heard. What then gets no connection from another pod was stopped on its way, by
silence or by a refusal. Network plugins take a moment to put a policy into force, so what does not stand yet
is tried again.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ztprobe.pods.model import Pod
from ztprobe.runtime.attempts import CONNECTED, SILENT, PodNetworks, connect
from ztprobe.runtime.interface import Proof
from ztprobe.runtime.local import dns

__all__ = ("Way", "prove_ways", "ways")

_SILENCE_S = 1.5  # longer than a profile's round trip, and than a second SYN takes to be answered
_ANSWER_S = 6.0
_IN_FORCE_S = 20.0  # for a network plugin to have taken a policy in
_AGAIN_S = 0.5
_NEXT_PORT = 1  # beside the server's
_STOPPED = "no connection"
_PLUGIN = "does this cluster's network plugin enforce NetworkPolicy?"


@dataclass(frozen=True, kw_only=True)
class Way:
    """From a pod to a port of another."""

    source: Pod
    target: Pod
    port: int
    is_open: bool
    listen: bool = False  # nothing of the workload's listens there

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.source.name} -> {self.target.name}:{self.port}/tcp"


def ways(server: Pod, clients: Sequence[Pod], port: int, *, policy: bool) -> list[Way]:
    """What is to be tried: the one way that the workload needs, and others, which policies close."""
    client = clients[0]
    found = [
        Way(source=client, target=server, port=port, is_open=True),
        Way(source=client, target=server, port=port + _NEXT_PORT, is_open=not policy, listen=True),
        Way(source=server, target=client, port=port, is_open=not policy, listen=True),
    ]
    if len(clients) > 1:
        found.append(Way(source=client, target=clients[1], port=port, is_open=not policy, listen=True))
    return found


def prove_ways(
    found: Sequence[Way], name: str, resolvers: Sequence[str], networks: PodNetworks, *, policy: bool
) -> list[Proof]:
    """Try all of them and the server's name until each is as it should be, or it has taken too long.

    :param name: of the server, asked for by the first way's source.
    :param resolvers: of that pod.
    :param networks: of the pods.
    """
    tried = functools.partial(_tried, networks)
    begun_s = time.monotonic()
    until_s = begun_s + (_IN_FORCE_S if policy else _ANSWER_S)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(max_workers=len(found) + 1) as pool:
        take_all = [
            stack.enter_context(networks.listening(way.target, way.port)) for way in found if way.listen
        ]
        while True:
            resolving = pool.submit(_resolved, networks, found[0], name, resolvers)
            seen = list(pool.map(tried, found))
            for take in take_all:
                take()
            proofs = [resolving.result(), *(_judged(*one) for one in zip(found, seen, strict=True))]
            if all(proof.passed for proof in proofs) or time.monotonic() > until_s:
                break
            time.sleep(_AGAIN_S)
    took_s = time.monotonic() - begun_s
    return [proof if proof.passed else _late(proof, took_s, policy) for proof in proofs]


def _tried(networks: PodNetworks, way: Way) -> tuple[str, bool]:
    """What came of an attempt, and whether the port answers within its own pod."""
    address, port = way.target.address, way.port
    seen = connect(way.source, address, port, _ANSWER_S if way.is_open else _SILENCE_S, networks)
    heard = way.is_open or connect(way.target, address, port, _SILENCE_S, networks) == CONNECTED
    return seen, heard


def _judged(way: Way, seen: tuple[str, bool]) -> Proof:
    said, heard = seen
    if way.is_open:
        word = "open without policy" if way.listen else "allowed"
        return Proof(name=f"{word}: {way.words}", expected=CONNECTED, observed=said, passed=said == CONNECTED)
    listener = "which is listened on" if heard else "on which nobody can be heard even from its own pod"
    return Proof(
        name=f"forbidden: {way.words}",
        expected=_STOPPED,
        observed=f"{said}, {listener}",
        passed=said != CONNECTED and heard,
    )


def _late(proof: Proof, took_s: float, policy: bool) -> Proof:
    hint = f": {_PLUGIN}" if policy and proof.expected == _STOPPED else ""
    return Proof(
        name=proof.name,
        expected=proof.expected,
        observed=f"{proof.observed}, after {took_s:.0f} s still{hint}",
        passed=False,
    )


def _resolved(networks: PodNetworks, way: Way, name: str, resolvers: Sequence[str]) -> Proof:
    expected = f"{name} is {way.target.address}"
    observed = "no resolver is named in /etc/resolv.conf"
    for resolver in resolvers[:1]:
        try:
            asked = dns.question(name)
            answer = networks.ask(way.source, resolver, dns.PORT, asked, _SILENCE_S)
            if answer is None:
                observed = SILENT
            else:
                observed = f"{name} is {', '.join(dns.addresses(asked, answer)) or 'unknown'}"
        except OSError as error:
            observed = error.strerror or str(error)
    return Proof(
        name=f"allowed: {way.source.name} -> {resolvers[0] if resolvers else 'DNS'}:{dns.PORT}/udp",
        expected=expected,
        observed=observed,
        passed=observed == expected,
    )
