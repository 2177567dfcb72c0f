"""The connections that a run recorded, as ``ztprobe policy simulate`` asks about them.

A SYN that left or reached a pod's interface opens a TCP connection (repeated, it is the same one), the
first datagram to port 53 a DNS exchange. A SYN and ACK, or a datagram back, is the answer. Both ends of
a connection between watched pods have seen it, and it counts once.
"""

from __future__ import annotations

import ipaddress
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis.evidence.reader import read_events
from analysis.evidence.values import ACK, SYN, Endpoint, KernelEvents
from ztprobe.errors import RunDirError, UsageError
from ztprobe.events.kinds import Direction
from ztprobe.policy.manifests import read_documents
from ztprobe.policy.model import ClusterPod, Objects
from ztprobe.policy.objects import read_objects
from ztprobe.policy.simulation import Recorded, merged
from ztprobe.rundir.store import Run

__all__ = (
    "changed_objects",
    "objects_at",
    "policy_pods",
    "read_recorded",
    "recorded_connections",
    "recorded_objects",
    "recorded_pods",
)

_DNS_PORT = 53
# Source, target, protocol, port -> connection (the client's port, or a number of its own) -> answered.
_Opened = dict[tuple[str, str, str, int], dict[Any, bool]]


def recorded_pods(run: Run) -> list[ClusterPod]:
    """The run's pods, as policies see them.

    Of what was attached to they are those that a cluster told of: the run's own have no labels.

    :raises RunDirError: see `recorded_objects`.
    """
    if not _is_attached(run):
        return policy_pods(run.meta["pods"])
    recorded = _first_objects(run)
    return [] if recorded is None else list(read_recorded(recorded, run.path).pods)


def _first_objects(run: Run) -> Any:
    """What was in force at the beginning, as it was written down; None: the run holds nothing of it."""
    return run.meta["enforcement"].get("details", {}).get("objects")


def _is_attached(run: Run) -> bool:
    return "attachment" in run.meta


def policy_pods(pods: Iterable[Mapping[str, Any]]) -> list[ClusterPod]:
    """Pods by name, namespace, labels and address, as policies see them."""
    return [
        ClusterPod(
            name=pod["name"],
            namespace=pod["namespace"],
            labels=pod["labels"],
            addresses=(ipaddress.ip_address(pod["address"]),),
            named_ports=None,
        )
        for pod in pods
    ]


def recorded_objects(run: Run, given: Objects | None = None) -> Objects | None:
    """The policies and namespaces that were in force, with the run's pods; None: the run holds none.

    :param given: objects to take in their place.
    :raises RunDirError: they are not what Kubernetes takes.
    """
    if given is None:
        recorded = _first_objects(run)
        if recorded is None:
            return None
        given = read_recorded(recorded, run.path)
    return merged(given, recorded_pods(run))


def read_recorded(items: Any, where: Path) -> Objects:
    """Objects that a run has written down.

    :param where: the run's directory.
    :raises RunDirError: they are not what Kubernetes takes.
    """
    try:
        documents = [
            document
            for item in items
            for document in read_documents(json.dumps(item), str(where / "run.json"))
        ]
        return read_objects(documents)
    except (TypeError, UsageError) as error:
        raise RunDirError(f"{where}: its record of the objects in force is damaged") from error


def changed_objects(run: Run) -> list[tuple[int, Objects]]:
    """What was in force later in the run, each from when on (CLOCK_MONOTONIC nanoseconds), by time.

    :raises RunDirError: see `recorded_objects`.
    """
    try:
        changes = [
            (int(one["time_monotonic_ns"]), one["objects"])
            for one in run.meta.get("facts", {}).get("object_changes", ())
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise RunDirError(f"{run.path}: its record of the objects in force is damaged") from error
    # A cluster's objects have its pods among them, as they were then.
    pods = recorded_pods(run) if changes and not _is_attached(run) else []
    return [(at_ns, merged(read_recorded(objects, run.path), pods)) for at_ns, objects in sorted(changes)]


def objects_at(run: Run, at_ns: int) -> Objects | None:
    """What was in force at a moment of the run (CLOCK_MONOTONIC); None: the run holds no policies.

    :raises RunDirError: see `recorded_objects`.
    """
    later = [objects for since_ns, objects in changed_objects(run) if since_ns <= at_ns]
    return later[-1] if later else recorded_objects(run)


def recorded_connections(run: Run) -> list[Recorded]:
    """What was connected to what, and how often; not what stayed within a pod."""
    addresses = {pod["name"]: pod["address"] for pod in run.meta["pods"]}
    names = {str(pod.addresses[0]): pod.id for pod in recorded_pods(run)}
    opened: _Opened = defaultdict(dict)
    events = read_events(run.events)
    _add_tcp(opened, events, addresses, names)
    _add_dns(opened, events, addresses, names)
    return [
        Recorded(
            source=source,
            target=target,
            protocol=protocol,
            port=port,
            answered=sum(connections.values()),
            unanswered=len(connections) - sum(connections.values()),
        )
        for (source, target, protocol, port), connections in sorted(opened.items())
    ]


def _add_tcp(opened: _Opened, events: KernelEvents, addresses: dict[str, str], names: dict[str, str]) -> None:
    for (pod, key), packets in events.packets.items():
        ends = getattr(key, "one", None), getattr(key, "other", None)
        if pod not in addresses or None in ends:  # a loopback connection
            continue
        for packet in packets:
            if packet.kind != "setup" or not packet.tcp_flags & SYN:
                continue
            answer = bool(packet.tcp_flags & ACK)
            mine = next(end for end in ends if end is not None and end.address == addresses[pod])
            peer = next(end for end in ends if end is not None and end != mine)
            client, server = _in_order(mine, peer, packet.direction == Direction.TX, answer)
            _add(opened, names, client, server, "TCP", key, answer)


def _add_dns(opened: _Opened, events: KernelEvents, addresses: dict[str, str], names: dict[str, str]) -> None:
    for message in events.dns:
        if message.pod not in addresses:
            continue
        sent = message.direction == Direction.TX
        # A pod that asks is watched, a name server mostly is not: its own port 53 tells it.
        asks = message.local_port != _DNS_PORT
        mine = Endpoint(addresses[message.pod], message.local_port)
        peer = Endpoint(message.remote, _DNS_PORT if asks else 0)
        client, server = (mine, peer) if asks else (peer, mine)
        key = (client.address, client.port, server.address)
        _add(opened, names, client, server, "UDP", key, sent != asks)


def _in_order(mine: Endpoint, peer: Endpoint, sent: bool, answer: bool) -> tuple[Endpoint, Endpoint]:
    """(client, server): who sent a SYN is the client, who sent a SYN and ACK the server."""
    return (mine, peer) if sent != answer else (peer, mine)


def _add(
    opened: _Opened,
    names: dict[str, str],
    client: Endpoint,
    server: Endpoint,
    protocol: str,
    connection: Any,
    answer: bool,
) -> None:
    source, target = (names.get(end.address, end.address) for end in (client, server))
    found = opened[source, target, protocol, server.port]
    found[connection] = found.get(connection, False) or answer
