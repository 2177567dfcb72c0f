"""What ``ztprobe profile ... --agents`` prints: leases of several nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ztprobe.cli.output import say
from ztprobe.cli.rendering.profile import (
    lease_dict,
    lease_row,
    notes,
    plan_lines,
    pod_words,
    print_verdict,
    step_words,
    table,
    verdict_dict,
)
from ztprobe.cli.rendering.profile_since import pod_lines
from ztprobe.printable import printable_lines

if TYPE_CHECKING:
    from ztprobe.agent.interface import LeaseState
    from ztprobe.agent.nodes.verification import NodeLease
    from ztprobe.conformance.verification import Conformance
    from ztprobe.leases.records import Lease

__all__ = (
    "applied_dict",
    "of_node",
    "print_applied",
    "print_leases",
    "print_verdicts",
    "verdicts_dict",
)

_PLANNED = "applying"


def of_node(node: str, words: str) -> str:
    """A line with its node's name before it, once."""
    name = f"node {node}: "
    return name + words.removeprefix(name)


def applied_dict(planned: Mapping[str, Lease], more: Sequence[str]) -> dict[str, Any]:
    """As of one lease, which is on several nodes.

    :param planned: by node; at least one.
    :param more: notes, for people.
    """
    first = next(iter(planned.values()))
    said = lease_dict(first)
    said["backend"] = " and ".join(dict.fromkeys(lease.backend for lease in planned.values()))
    # By the nodes' clocks, which are not ours.
    said["remaining_s"] = round(_lasts_s(first), 1)
    said["pods"] = [str(pod) for lease in planned.values() for pod in lease.pods]
    said["interfaces"] = [
        {"node": node, **interface}
        for node, lease in planned.items()
        for interface in lease_dict(lease)["interfaces"]
    ]
    said["nodes"] = {node: [str(pod) for pod in lease.pods] for node, lease in planned.items()}
    return said | {"dry_run": first.state == _PLANNED, "notes": _all_notes(planned, more)}


def print_applied(planned: Mapping[str, Lease], more: Sequence[str]) -> None:
    """See `applied_dict`."""
    from ztprobe.leases.records import words

    for node, lease in planned.items():
        for line in plan_lines(lease):
            say(printable_lines(of_node(node, line)))
    for note in _all_notes(planned, more):
        say(printable_lines(f"note: {note}"))
    first = next(iter(planned.values()))
    if first.state == _PLANNED:
        say("dry run: nothing was changed")
        return
    holding = [lease for lease in planned.values() if lease.pods]
    pods = sum(len(lease.pods) for lease in holding)
    whose = pod_words(first) if len(holding) == 1 else f"{pods} pods of {len(holding)} nodes"
    say(
        f"lease {first.id}: {first.profile.name} on {whose} for {words(_lasts_s(first))}; "
        "ztprobe profile verify | status | clear --agents"
    )


def _lasts_s(lease: Lease) -> float:
    return (lease.expires_ns - lease.created_ns) / 1e9


def _all_notes(planned: Mapping[str, Lease], more: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*more, *(note for lease in planned.values() for note in notes(lease))]))


def print_leases(nodes: Mapping[str, Sequence[LeaseState]]) -> None:
    """All of them in one table."""
    if any(nodes.values()):
        rows = [(node, *lease_row(one)) for node, states in nodes.items() for one in states]
        table(("node", "lease", "profile", "backend", "pods", "in force", "left", "counted"), rows)
    elif nodes:
        say(f"no profile is in force on {', '.join(map(printable_lines, nodes))}")
    for node, states in nodes.items():
        for one in states:
            for line in (*step_words(one), *pod_lines(one)):
                say(printable_lines(of_node(node, line)))


def verdicts_dict(
    verdicts: Sequence[tuple[NodeLease, Conformance | str]], problems: Mapping[str, str]
) -> dict[str, Any]:
    """What was measured, and what was not."""
    told = [
        {"node": one.node, "lease": one.lease.id, "profile": one.lease.profile.name, "not_measured": verdict}
        if isinstance(verdict, str)
        else {"node": one.node, "not_measured": None, **verdict_dict(verdict)}
        for one, verdict in verdicts
    ]
    return {"leases": told, "problems": dict(problems)}


def print_verdicts(verdicts: Sequence[tuple[NodeLease, Conformance | str]]) -> None:
    """See `verdicts_dict`."""
    for one, verdict in verdicts:
        if isinstance(verdict, str):
            say(printable_lines(of_node(one.node, f"lease {one.lease.id}: not measured: {verdict}")))
        else:
            say(printable_lines(f"node {one.node}:"))
            print_verdict(verdict)
