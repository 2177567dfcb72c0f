"""What is known of an observed deployment, as a run: while it goes on, and at its end."""

from __future__ import annotations

from typing import Any

from ztprobe.agent.interface import Account, NodeFacts
from ztprobe.agent.service.node_session import process_number
from ztprobe.attach.nodes.node import ObservedNode
from ztprobe.attach.nodes.observation import Observation
from ztprobe.attach.record import conditions_of_others
from ztprobe.errors import ZtprobeError
from ztprobe.experiment.nodes.accounts import account_of
from ztprobe.experiment.nodes.tables import tables_of
from ztprobe.experiment.record import accounted, versions
from ztprobe.frameworks.source import Framework
from ztprobe.pods.model import Pod
from ztprobe.rundir.store import Run

__all__ = ("run_of",)

_FRAMEWORK = Framework(name="generic")
# Nobody put a profile or a policy on: what is in force there is not ours to say.


def run_of(seen: Observation, *, failure: ZtprobeError | None = None, so_far: bool = False) -> Run:
    """A run like a saved one, of what there is now.

    :param failure: what ended it early.
    :param so_far: it goes on; else all of its nodes have been stopped.
    """
    tables = tables_of(seen.in_order, ObservedNode.owners) | {"machine": seen.load.table()}
    if so_far:  # after the tables, and the server's clock last: nothing that was seen is later
        for node in reversed(seen.in_order):
            node.sample()
    meta = _meta(seen, Account() if so_far else account_of(seen.in_order))
    meta["table_rows"] = {name: len(table) for name, table in tables.items()}
    if so_far:
        now_ns = meta["clock_samples"][-1]["time_monotonic_ns"]
        meta |= {"so_far": {"at_ns": now_ns}, "loss": {}}
        meta["attachment"]["detached_ns"] = now_ns
    if failure is not None:
        meta["failed"] = {"reason": str(failure), "at_ns": seen.detached_ns}
    return Run(path=seen.directory, meta=meta, rounds=list(seen.rounds.events), events=tables)


def _meta(seen: Observation, account: Account) -> dict[str, Any]:
    server, nodes = seen.pods.server, seen.in_order
    facts = seen.server_node.facts or NodeFacts(kernel="", machine="", cores=1, drop_reasons={})
    samples = seen.server_node.clock_samples
    told = accounted(account)
    return {
        "stalls": [stall.as_dict() for stall in seen.stalls.found],
        "topology": {**seen.topology, "rounds_of": server.name},
        "experiment": {"name": f"attached-{_FRAMEWORK.name}"},
        "options": {},
        "runtime": "attached",
        "kernel": facts.kernel,
        "machine": facts.machine,
        "versions": versions(),
        "pods": [_pod(pod) for node in nodes for pod in node.pods.values()],
        "facts": {},
        "attachment": _attachment(seen),
        "pod_counters": seen.counters,
        **conditions_of_others(account, {"objects": seen.pods.objects} if seen.pods.objects else {}),
        **told,
        "agent_cpu_ns": told["agent_cpu_ns"] + seen.load.cpu_ns,
        "machine_load": seen.load.facts(),
        "hooks": account.hooks or seen.server_node.hooks,
        "clock_samples": samples,
        "nodes": [
            {"name": node.name, "pods": list(node.pods), "clock_samples": node.clock_samples}
            for node in nodes
        ],
        "drop_reasons": account.drop_reasons or facts.drop_reasons,
        "wall_ns": max(0, seen.detached_ns - seen.attached_ns),
        "cores": sum(node.facts.cores for node in nodes if node.facts is not None),
    }


def _pod(pod: Pod) -> dict[str, Any]:
    return {
        "name": pod.name,
        "namespace": pod.namespace,
        "labels": dict(pod.labels),
        "address": pod.address,
        "netns_inode": pod.netns_inode,
        "interface": pod.interface,
        "addresses": [pod.address],
        "interfaces": list(pod.interfaces),
    }


def _attachment(seen: Observation) -> dict[str, Any]:
    server = seen.pods.server.name
    found = {name: _participant(seen, pod, "client") for name, pod in seen.ever.items() if name != server}
    return {
        "participants": [_participant(seen, seen.ever[server], "server"), *found.values()],
        "framework": _FRAMEWORK.as_dict(),
        "rounds_from": seen.rounds.rounds_from().as_dict(),
        "unix_sockets": [],
        "attached_ns": seen.attached_ns,
        "detached_ns": seen.detached_ns,
    }


def _participant(seen: Observation, pod: Pod, role: str) -> dict[str, Any]:
    """One pod is one participant; on a node that nobody watches it is an address."""
    target = next(
        (
            one.text
            for one in (seen.request.server, *seen.request.clients)
            if one.role == role and one.selector.matches(pod.labels)
        ),
        "",
    )
    found: dict[str, Any] = {
        "name": pod.name,
        "role": role,
        "target": target,
        "first_seen_ns": seen.came_ns.get(pod.name, seen.attached_ns),
        "ended_ns": seen.left_ns.get(pod.name, 0),
    }
    for number, node in enumerate(seen.in_order):
        if (placed := node.pods.get(pod.name)) is not None:
            processes = [
                {
                    "pid": process_number(pid, number),
                    "started": one.started_ticks,
                    "command": one.command,
                }
                for pid, (one, where) in node.processes.items()
                if where == pod.name
            ]
            return found | {"netns_inode": placed.netns_inode, "pod": pod.name, "processes": processes}
    return found | {"netns_inode": 0, "pod": "", "address": pod.address, "processes": []}
