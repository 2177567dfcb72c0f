"""A run that went wrong, as recognisers look at it: who is who, what was tried, what the kernel saw of it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from analysis.causes.attempts import Attempt, attempts_of
from analysis.contention import machine_table
from analysis.evidence.identity import Connections
from analysis.evidence.node_clocks import aligned
from analysis.evidence.participants import by_participant
from analysis.evidence.reader import read_events
from analysis.evidence.values import KernelEvents, Key
from analysis.ledger.handshakes import DnsQuery, dns_queries
from analysis.ledger.roles import Roles, roles_of
from analysis.results.drops import DroppedPacket, ExplainerOverTime, dropped_packets
from analysis.rounds.round_source import settled
from analysis.run_checks import checked
from ztprobe.errors import RunDirError
from ztprobe.policy.model import Objects
from ztprobe.rundir.clock import Clock
from ztprobe.rundir.store import Run

__all__ = ("Case", "Exit", "StateChange", "case_of")

# A proof that something is open, as the runtime names it.
_OPEN_DOOR = re.compile(r"allowed: (?P<source>\S+) -> (?P<target>\S+):(?P<port>\d+)/(?P<protocol>tcp|udp)")
_LOGGED = 64 << 10  # of each log, its last bytes


class StateChange(NamedTuple):
    """A socket's state changed (the kernel's TCP states, by name)."""

    ts_ns: int
    pod: str
    process: str  # pod/container; empty: not known
    local_port: int
    old: str
    new: str


@dataclass(frozen=True, kw_only=True)
class Exit:
    """A process that ended, and when that was noticed."""

    process: str  # pod/container
    status: int | None  # negative: the signal; None: not told (nobody who told us has waited for it)
    at_ns: int

    @property
    def pod(self) -> str:
        return self.process.partition("/")[0]

    @property
    def container(self) -> str:
        return self.process.partition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Made once, by `case_of`."""

    run: Run  # of one that was attached to: by participants
    recorded: Run  # as it was recorded, with its rounds settled
    clock: Clock
    events: KernelEvents
    server: str
    clients: tuple[str, ...]
    ports: frozenset[int]  # of the server, for other pods
    addresses: Mapping[str, str]  # pod -> address
    names: Mapping[str, str]  # address -> pod
    sidecars: Mapping[str, str]  # pod -> the sidecar's container
    listeners: Mapping[tuple[str, int], str]  # (pod, port) -> the container that listened there
    since_ns: int  # what was tried before is ztprobe's own proof of the controls; 0: none of it
    doors: frozenset[
        tuple[str, str, str, int]
    ]  # that a failed proof knocked at: source, target, protocol, port
    until_ns: int  # the end of what was seen
    mtls_failed: bool  # a proof of mutual TLS found it not in force
    proven: bool  # whether controls were tried before the clients were started
    proof_ns: tuple[int, int] | None  # when the controls were proven, or should have been
    failed: str | None  # why the run failed, in its own words
    goes_on: bool  # the run has not ended: what is seen is what there is so far
    exits: tuple[Exit, ...]
    attempts: tuple[Attempt, ...]
    questions: tuple[DnsQuery, ...]
    dropped: tuple[DroppedPacket, ...]
    policies: ExplainerOverTime
    state_changes: Mapping[Key, Sequence[StateChange]]  # by connection
    refused_ports: Mapping[tuple[str, int], Sequence[int]]  # (pod, own port) -> when an open attempt ended
    machine: pd.DataFrame | None  # what else the machine did (`ztprobe.agent.machine_load`); None: not known
    logs: Mapping[str, str]  # file -> its end: never evidence alone
    # Those of the clients that serve others in turn (edge aggregators) -> whom, or who would be served.
    edges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_attached(self) -> bool:
        """Whether it is of a deployment that ran already."""
        return "attachment" in self.run.meta

    @property
    def behind_edges(self) -> frozenset[str]:
        """Clients of edge aggregators."""
        return frozenset(pod for served in self.edges.values() for pod in served)

    @property
    def participants(self) -> tuple[str, ...]:
        """All who take part: the server, its clients, and theirs."""
        below = (pod for served in self.edges.values() for pod in served if pod not in self.clients)
        return tuple(dict.fromkeys((self.server, *self.clients, *below)))

    @property
    def counters(self) -> Sequence[Mapping[str, Any]]:
        """Samples of what pods and containers had run into, by time."""
        samples: Sequence[Mapping[str, Any]] = self.run.meta.get("pod_counters", ())
        return samples

    @property
    def changed(self) -> bool:
        """Whether the policies in force changed during the run."""
        return bool(self.run.meta.get("facts", {}).get("object_changes"))

    def pod_of(self, address: str) -> str:
        """A pod's name, or the address."""
        return self.names.get(address, address)

    def is_ours(self, source: str, target: str, protocol: str, port: int, ts_ns: int) -> bool:
        """Whether that was the workload's own traffic, or what a failed proof found shut."""
        if "level_switch" in self.run.meta and source not in self.addresses:
            return False  # the knocks that showed a level in force while rounds went on
        if self.since_ns:
            return ts_ns >= self.since_ns or not self.proven
        # The run failed before its clients were started: by what sidecars tried, or in the proof.
        return (
            self.proof_ns is None
            or ts_ns < self.proof_ns[0]
            or (source, target, protocol, port) in self.doors
        )

    def last_payload_ns(self, key: Key, before_ns: int) -> int | None:
        """When payload was last seen on a connection before a moment, at any of its hooks."""
        times = [
            burst.last_ns
            for (_, _, one), found in self.events.bursts.items()
            if one == key
            for bursts in found.values()
            for burst in bursts
            if burst.last_ns < before_ns
        ]
        for pod in self.addresses:
            packets = self.events.packets.get((pod, key), ())
            times += [p.ts_ns for p in packets if p.kind == "payload" and p.ts_ns < before_ns]
        return max(times, default=None)

    def growth(self, kind: str, name: str, counter: str) -> int:
        """By how much a counter of a pod or a container grew from the first sample to the last."""
        values = self.counted(kind, name, counter)
        return values[-1][1] - values[0][1] if len(values) > 1 else 0

    def counted(self, kind: str, name: str, counter: str) -> list[tuple[int, int]]:
        """(when, value), by time. A container that was not there at first began with nothing."""
        found = [
            (int(s["at_ns"]), int(s[kind][name][counter]))
            for s in self.counters
            if counter in s[kind].get(name, {})
        ]
        is_new = bool(found) and name not in self.counters[0][kind]
        begun = [(int(self.counters[0]["at_ns"]), 0)] if is_new and kind == "containers" else []
        return begun + found

    def last(self, kind: str, name: str, counter: str) -> Any:
        """A counter's last value; None: not recorded."""
        values = [s[kind][name][counter] for s in self.counters if counter in s[kind].get(name, {})]
        return values[-1] if values else None

    def log_line(self, pod: str, *words: str) -> str | None:
        """The last line of a pod's logs that holds one of the words; supports evidence, and is none."""
        for name, text in sorted(self.logs.items()):
            if name.startswith(f"{pod}."):
                for line in reversed(text.splitlines()):
                    if any(word in line for word in words):
                        return line.strip()
        return None


def case_of(run: Run, objects: Objects | None = None) -> Case:
    """Read a saved run, failed or not.

    :param objects: the policies in force (default: those that the run recorded).
    :raises ztprobe.errors.RunDirError: it is damaged, or not one run.
    """
    if objects is not None and "attachment" in run.meta:
        raise RunDirError(
            f"{run.path}: was attached to: its participants are no pods that policies (-f) select"
        )
    machine = machine_table(run)
    recorded = settled(aligned(run))
    run, _ = checked(recorded)
    run = by_participant(run)
    meta = run.meta
    attachment = meta.get("attachment", {})
    topology = meta["topology"]
    addresses = {pod["name"]: pod["address"] for pod in meta["pods"]}
    names = {address: name for name, address in addresses.items()}
    events = read_events(run.events)
    roles = _roles_of_attached(meta) if attachment else roles_of(meta)
    changes, ended = _state_changes(run)
    attempts = tuple(attempts_of(events, addresses, names))
    since_ns = int(attachment.get("attached_ns", meta.get("clients_started_ns", 0)))
    return Case(
        run=run,
        recorded=recorded,
        clock=Clock.of_run(meta),
        events=events,
        server=roles.server,
        clients=roles.clients,
        ports=roles.ports,
        addresses=addresses,
        names=names,
        sidecars=_sidecars(meta),
        listeners={(one["pod"], one["port"]): one["container"] for one in topology["endpoints"]},
        since_ns=since_ns,
        doors=frozenset(_doors(meta)),
        until_ns=int(
            attachment.get("detached_ns", max(one["time_monotonic_ns"] for one in meta["clock_samples"]))
        ),
        mtls_failed=any(not proof["passed"] for proof in meta["enforcement"].get("mtls", ())),
        proven=any(meta["enforcement"].get(kind) for kind in ("network_policy", "mtls")),
        proof_ns=_window(meta.get("proof")),
        failed=meta["failed"]["reason"] if "failed" in meta else None,
        goes_on="so_far" in meta,
        exits=(*(Exit(**one) for one in meta.get("exits", ())), *_ended(attachment)),
        attempts=attempts,
        questions=tuple(dns_queries(events.dns)),
        dropped=tuple(dropped_packets(run, objects)),
        policies=ExplainerOverTime(run, objects),
        state_changes=changes,
        refused_ports=ended,
        machine=machine,
        logs=_logs(run),
        edges=roles.edges if attachment or not since_ns else _edges(roles, attempts, since_ns),
    )


def _roles_of_attached(meta: Mapping[str, Any]) -> Roles:
    """As whoever attached named them: behind a hub a server only asks, and a client may never get through."""
    topology = meta["topology"]
    server = topology["rounds_of"]
    return Roles(
        server=server,
        ports=frozenset(int(one["port"]) for one in topology["endpoints"] if one["pod"] == server),
        clients=tuple(one["name"] for one in meta["attachment"]["participants"] if one["role"] == "client"),
        behind_sidecar=frozenset(topology["behind_sidecar"]),
        sidecars_ns=0,
    )


def _edges(roles: Roles, attempts: Sequence[Attempt], since_ns: int) -> dict[str, tuple[str, ...]]:
    """Edge aggregators -> their clients, those included that tried to connect and did not get through."""
    found: dict[str, list[str]] = {edge: list(served) for edge, served in roles.edges.items()}
    below = {pod for served in roles.edges.values() for pod in served}
    ours = {roles.server, *roles.clients, *below}
    for one in attempts:
        if one.pod == one.target or one.syns_ns[0] < since_ns or not {one.pod, one.target} <= ours:
            continue
        if one.target in roles.clients and one.pod not in (roles.server, *roles.edges):
            served = found.setdefault(one.target, [])
            if one.pod not in served:
                served.append(one.pod)
    return {edge: tuple(served) for edge, served in found.items()}


def _ended(attachment: Mapping[str, Any]) -> Iterator[Exit]:
    """The participants of whom no process was there any more."""
    for one in attachment.get("participants", ()):
        if one.get("ended_ns"):
            yield Exit(process=f"{one['name']}/{one['name']}", status=None, at_ns=int(one["ended_ns"]))


def _sidecars(meta: Mapping[str, Any]) -> dict[str, str]:
    """Pod -> its sidecar's container: who was seen to pass connections on, or has an application behind it.

    Of two containers of a pod, the one that listens for other pods while the other listens on loopback only
    is the sidecar; and so is one that listens on loopback only while no other container listens.
    """
    found = {pod: container for pod, container in meta["topology"]["behind_sidecar"].items() if container}
    listening: dict[str, dict[str, bool]] = defaultdict(dict)
    for one in meta["topology"]["endpoints"]:
        containers = listening[one["pod"]]
        containers[one["container"]] = containers.get(one["container"], False) or one["reachable"]
    known: dict[str, set[str]] = defaultdict(set)
    for sample in meta.get("pod_counters", ()):
        for process in sample["containers"]:
            pod, _, container = process.partition("/")
            known[pod].add(container)
    for pod, containers in listening.items():
        outward = [name for name, reachable in containers.items() if reachable]
        inward = [name for name, reachable in containers.items() if not reachable]
        if outward and inward:
            found.setdefault(pod, outward[0])
        elif len(inward) == 1 and known[pod] - set(inward):
            found.setdefault(pod, inward[0])
    return found


def _state_changes(
    run: Run,
) -> tuple[dict[Key, list[StateChange]], dict[tuple[str, int], list[int]]]:
    key_of = Connections(run.events["connections"]).key_of
    changes: dict[Key, list[StateChange]] = defaultdict(list)
    ended: dict[tuple[str, int], list[int]] = defaultdict(list)
    rows: Iterable[Any] = run.events["state_changes"].itertuples(index=False)
    for row in rows:
        change = StateChange(row.ts_ns, row.pod, row.process, row.local_port, row.old_state, row.new_state)
        if (key := key_of.get(row.connection)) is not None:
            changes[key].append(change)
        if (row.old_state, row.new_state) == ("syn_sent", "close"):
            ended[row.pod, row.local_port].append(row.ts_ns)
    return dict(changes), dict(ended)


def _window(recorded: Mapping[str, Any] | None) -> tuple[int, int] | None:
    return None if recorded is None else (int(recorded["from_ns"]), int(recorded["to_ns"]))


def _doors(meta: Mapping[str, Any]) -> Iterable[tuple[str, str, str, int]]:
    for proof in meta["enforcement"].get("network_policy", ()):
        found = _OPEN_DOOR.match(proof["name"])
        if found is not None and not proof["passed"]:
            yield found["source"], found["target"], found["protocol"], int(found["port"])


def _logs(run: Run) -> dict[str, str]:
    found: dict[str, str] = {}
    directory = run.path / "logs"
    if directory.is_dir():
        for path in sorted(directory.iterdir()):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as stream:
                    stream.seek(max(0, path.stat().st_size - _LOGGED))
                    found[path.name] = stream.read(_LOGGED).decode(errors="replace")
    return found
