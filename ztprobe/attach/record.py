"""What a trace of a running deployment leaves: tables, the rounds as logged, and run.json."""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztprobe.agent import endpoints
from ztprobe.agent.interface import Account
from ztprobe.agent.machine_load import MachineLoad
from ztprobe.agent.stalls import Stall
from ztprobe.attach.foreign_traffic import without_foreign
from ztprobe.attach.namespaces import Held
from ztprobe.attach.owner_log import OwnedEnd
from ztprobe.attach.owners import owners_table
from ztprobe.attach.process_evidence import Evidence
from ztprobe.attach.request import AttachRequest
from ztprobe.attach.rounds import Rounds
from ztprobe.experiment.record import pod_record, read_tables, versions
from ztprobe.frameworks.source import Framework
from ztprobe.pods.participants import Participant
from ztprobe.rundir.store import RunDir

__all__ = ("RunRecord", "conditions_of_others", "write_run")

_SYSCTLS = Path("/proc/sys/net/ipv4")
_FACTS = ("tcp_congestion_control", "tcp_slow_start_after_idle", "tcp_rmem", "tcp_wmem")
# Nobody put a profile or a policy on: what is in force there is not ours to say.
_NOT_OURS = "not ours: whoever runs the deployment decides"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that is known at the end."""

    request: AttachRequest
    participants: Sequence[Participant]
    held: Mapping[int, Held]
    owners: Sequence[OwnedEnd]
    unix_sockets: Sequence[Mapping[str, Any]]
    rounds: Rounds
    account: Account
    load: MachineLoad
    topology: dict[str, Any] | None
    clock_samples: list[dict[str, Any]]
    attached_ns: int
    detached_ns: int
    evidence: Evidence
    in_force: Sequence[
        tuple[int, Sequence[Mapping[str, Any]]]
    ]  # `ztprobe.pods.labelled.LabelledPods.in_force`
    stalls: Sequence[Stall]
    failed: Mapping[str, Any] | None = None  # why, and when that was noticed; None: it went through
    # What the agent's numbers stand for, where it did not live to tell: `ztprobe.experiment.record.owners_of`
    agent_names: Mapping[str, Any] | None = None

    def pod_of(self, participant: Participant) -> str:
        """The name of its namespace; empty: on another machine."""
        held = self.held.get(participant.netns_inode)
        return held.pod.name if held is not None else ""


def write_run(target: RunDir, record: RunRecord) -> None:
    """Write the run directory, run.json last. :raises RunDirError: the disk refuses."""
    target.append_jsonl("rounds.jsonl", *record.rounds.events)
    tables = read_tables(target, record.account, record.agent_names)
    pods = {inode: held.pod.name for inode, held in record.held.items()}
    whose = {member.pid: one.name for one in record.participants for member in one.commands}
    owners = owners_table(record.owners, tables, pods, _with_children(whose, tables))
    shared = frozenset(name for name in pods.values() if name == "host")
    tables = without_foreign(tables, owners, shared) | {"owners": owners, "machine": record.load.table()}
    for name, table in tables.items():
        target.write_events(name, table)
    framework = record.evidence.framework(tables["packets"]["data"].tolist())
    meta = _meta(record, framework) | {"table_rows": {name: len(table) for name, table in tables.items()}}
    # Tuples become lists, as they will be read back; what is no number must not cost a finished run.
    target.finish(json.loads(json.dumps(meta), parse_constant=lambda _name: None))


def _with_children(whose: Mapping[int, str], tables: Mapping[str, Any]) -> dict[int, str]:
    """Processes that began and ended between two looks are their parents'."""
    found = dict(whose)
    starts = tables.get("process_starts")
    if starts is not None:
        for child, parent in zip(starts["tgid"].tolist(), starts["parent"].tolist(), strict=True):
            if child not in found and parent in found:
                found[child] = found[parent]
    return found


def _own_cpu_ns(record: RunRecord) -> int:
    """Of all that is ztprobe's while it was attached: the command watches too, not its agent alone."""
    load = record.load.table()
    during = (load["from_ns"] >= record.attached_ns) & (load["from_ns"] < record.detached_ns)
    return int(load["ztprobe_ns"][during].sum())


def _meta(record: RunRecord, framework: Framework) -> dict[str, Any]:
    account, load = record.account, record.load
    pods = [_pod(held) for held in record.held.values()]
    spent_ns = sum(probe["run_time_ns"] for probe in account.probes) + _own_cpu_ns(record)
    name = f"attached-{framework.name}"
    server = next(one for one in record.participants if one.role == "server")
    rounds_of = record.pod_of(server)
    topology = record.topology or endpoints.unknown(rounds_of, [held.pod for held in record.held.values()])
    failed = {} if record.failed is None else {"failed": dict(record.failed)}
    return failed | {
        "stalls": [stall.as_dict() for stall in record.stalls],
        "topology": {"rounds_of": rounds_of, **topology},
        "experiment": {"name": name},
        "options": {},
        "runtime": "attached",
        "kernel": platform.release(),
        "machine": platform.machine(),
        "versions": versions(),
        "pods": pods,
        "facts": _facts() | _later_objects(record),
        "attachment": _attachment(record, framework),
        **conditions_of_others(account, _first_objects(record)),
        "machine_load": load.facts(),
        "hooks": account.hooks,
        "probes": account.probes,
        "clock_samples": record.clock_samples,
        "nodes": [
            {
                "name": socket.gethostname(),
                "pods": [pod["name"] for pod in pods],
                "clock_samples": record.clock_samples,
            }
        ],
        "loss": account.loss,
        "loss_log": account.loss_log,
        "coverage": account.coverage,
        "events_seen": account.events_seen,
        "events_unread": account.events_unread,
        "drop_reasons": account.drop_reasons,
        "emulator_cpu_ns": 0,
        "agent_cpu_ns": spent_ns,
        "agent_memory": account.memory,
        "wall_ns": record.detached_ns - record.attached_ns,
        "cores": os.cpu_count() or 1,
    }


def conditions_of_others(account: Account, objects: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says of profile and enforcement where both are somebody else's.

    :param objects: the policies in force at first, as ``objects``; empty: not known.
    """
    return {
        "emulation": {
            "profile": _NOT_OURS,
            **dict.fromkeys(("backend", "requested", "measured")),
            # Read from the kernel, whoever put it there.
            "observed": account.observed,
        },
        "enforcement": {
            "network_policy_expected": False,
            "mtls_expected": False,
            "details": {"whose": _NOT_OURS, **objects},
        },
    }


def _attachment(record: RunRecord, framework: Framework) -> dict[str, Any]:
    return {
        "participants": [one.as_dict(record.pod_of(one)) for one in record.participants],
        "framework": framework.as_dict(),
        "rounds_from": record.rounds.rounds_from().as_dict(),
        "unix_sockets": [dict(one) for one in record.unix_sockets],
        "attached_ns": record.attached_ns,
        "detached_ns": record.detached_ns,
    }


def _first_objects(record: RunRecord) -> dict[str, Any]:
    return {"objects": list(record.in_force[0][1])} if record.in_force else {}


def _later_objects(record: RunRecord) -> dict[str, Any]:
    later = [{"time_monotonic_ns": at_ns, "objects": list(each)} for at_ns, each in record.in_force[1:]]
    return {"object_changes": later} if later else {}


def _pod(held: Held) -> dict[str, Any]:
    return pod_record(held.pod) | {
        "addresses": list(held.addresses),
        "interfaces": list(held.pod.interfaces),
    }


def _facts() -> dict[str, Any]:
    found = {}
    for name in _FACTS:
        try:
            found[name] = " ".join((_SYSCTLS / name).read_text().split())
        except OSError:
            continue  # this kernel has none of it
    return found
