"""``ztprobe profile ... --agents``: leases on a cluster's pods, from anywhere, by their nodes' agents."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ztprobe.cli.agent_options import AgentAccess, agent_access, agents_options, tls_files
from ztprobe.cli.asking_agents import ask_agents
from ztprobe.cli.options import cluster_access, cluster_options
from ztprobe.cli.output import say, say_json
from ztprobe.cli.rendering.profile_nodes import (
    applied_dict,
    of_node,
    print_applied,
    print_leases,
    print_verdicts,
    verdicts_dict,
)
from ztprobe.cli.rendering.profile_since import states_dicts
from ztprobe.errors import EnforcementError, PreflightError, UsageError, ZtprobeError
from ztprobe.printable import printable_lines

if TYPE_CHECKING:
    from ztprobe.agent.interface import LeaseRequest, LeaseState
    from ztprobe.agent.nodes.verification import NodeLease, NodesVerification
    from ztprobe.agent.service.client import Connection
    from ztprobe.agent.service.wire import Tls
    from ztprobe.conformance.verification import Conformance
    from ztprobe.kubernetes.agents import AgentAddress
    from ztprobe.leases.records import Lease
    from ztprobe.pods.model import Pod

__all__ = (
    "apply_through",
    "clear_through",
    "leases_options",
    "profile_access",
    "show_leases_of",
    "verify_through",
)

_LATER = "pods that come later or are restarted are not under it"
_NOWHERE = f"{_LATER}, on whichever node: apply it again then"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def leases_options(command: _Command) -> _Command:
    """Through which agents of which cluster."""
    return cluster_options(agents_options(command))


def profile_access(
    given: Mapping[str, Any], *, runtime: str = "auto", node: str | None = None, namespace: str | None = None
) -> AgentAccess | None:
    """What `leases_options` gave; None: this machine's pods are meant.

    :raises UsageError: options that do not go together.
    """
    files = tls_files(given["cert"], given["key"], given["authority"], "--ca")
    if not given["through"] and not given["addresses"]:
        for option in ("context", "kubeconfig"):
            if given[option] is not None:
                raise UsageError(f"--{option}: is about a cluster's agents: give --agents")
        return agent_access(None, False, (), given["agents_in"], files)
    if runtime == "local":
        raise UsageError("--agents and --agent are about a cluster's pods: leave --runtime local out")
    cluster = cluster_access(
        "kubernetes", given["context"], given["kubeconfig"], namespace=namespace, node=node
    )
    return agent_access(cluster, given["through"], given["addresses"], given["agents_in"], files)


def apply_through(
    access: AgentAccess,
    wanted: Callable[..., LeaseRequest],
    selector: str,
    to: str | None,
    *,
    follow: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put a profile on pods of all nodes, or on none.

    :param wanted: makes the request of `pods` and `peers`.
    :param follow: on those that come while it lasts, too.
    """
    from ztprobe.agent.nodes.leases import NodesLeases
    from ztprobe.agent.service.node_session import addresses_by_node
    from ztprobe.kubernetes.selected_pods import selected_pods
    from ztprobe.leases.following import Following
    from ztprobe.pods.selectors import parse_selector

    towards = parse_selector(to) if to is not None else None
    chosen = selected_pods(access.cluster.api(), parse_selector(selector), towards, access.cluster.namespace)
    agents, tls = access.agents(), access.tls()
    addresses = {node: one.address for node, one in addresses_by_node(agents, tls).items()}
    request = wanted(pods=chosen.pods, peers=chosen.peers)
    if follow:
        following = Following(runtime="kubernetes", at=request.at, replace=request.replace)
        request = dataclasses.replace(request, follow=following)
    with NodesLeases(addresses, tls) as nodes:
        planned = nodes.plan(request)
        later = [of_node(node, f"{_LATER}: {why}") for node, why in nodes.unfollowed.items()]
        notes = (*chosen.notes, *(later if follow else [_NOWHERE]))
        show = functools.partial(_tell, planned, notes, as_json=as_json)
        if dry_run:
            show()
            return
        with nodes.begun(planned, lambda line: click.echo(printable_lines(f"ztprobe: {line}"), err=True)):
            for lease in planned.values():
                lease.state = "in force"
            show()


def _tell(planned: Mapping[str, Lease], notes: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        say_json(applied_dict(planned, notes))
    else:
        print_applied(planned, notes)


def _leases(
    connection: Connection, status: Mapping[str, Any], then: Callable[[Any, list[LeaseState]], dict[str, Any]]
) -> dict[str, Any]:
    from ztprobe.agent.service.lease_client import LeaseClient

    with LeaseClient(str(status["node"]), connection) as client:
        return then(client, client.leases())


def _asked(
    access: AgentAccess, then: Callable[[Any, list[LeaseState]], dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What became of each node's leases; and which nodes do not say, and why."""
    found = ask_agents(access, functools.partial(_leases, then=then))
    problems = {node: said["problem"] for node, said in sorted(found.items()) if "problem" in said}
    return {node: said for node, said in sorted(found.items()) if node not in problems}, problems


def _print_problems(problems: Mapping[str, str]) -> None:
    for node, problem in problems.items():
        click.echo(printable_lines(of_node(node, problem)), err=True)


def show_leases_of(context: click.Context, access: AgentAccess, *, as_json: bool) -> None:
    """What is in force, node by node; exits with 3 if an agent does not say."""
    found, problems = _asked(access, lambda _, states: {"states": states})
    if as_json:
        nodes: dict[str, Any] = {
            node: {"leases": states_dicts(said["states"])} for node, said in found.items()
        }
        say_json({"nodes": nodes | {node: {"problem": problem} for node, problem in problems.items()}})
    else:
        print_leases({node: said["states"] for node, said in found.items()})
        _print_problems(problems)
    if problems:
        context.exit(PreflightError.exit_code)


def clear_through(context: click.Context, access: AgentAccess, ids: Sequence[str], *, as_json: bool) -> None:
    """End leases on all nodes: those named, or all; exits with 3 if an agent does not say.

    :raises UsageError: there is no lease of such a name; then none is ended.
    """
    if ids:
        found, problems = _asked(access, lambda _, states: {"ids": [one.lease.id for one in states]})
        _refuse_unknown(ids, {one for said in found.values() for one in said["ids"]}, problems)

    def end(client: Any, states: list[LeaseState]) -> dict[str, Any]:
        mine = [one.lease.id for one in states if not ids or one.lease.id in ids]
        return {"ended": client.end_leases(mine) if mine else []}

    found, problems = _asked(access, end)
    ended = [(node, lease) for node, said in found.items() for lease in said["ended"]]
    if as_json:
        nodes = {node: [lease.id for lease in said["ended"]] for node, said in found.items()}
        cleared = list(dict.fromkeys(lease.id for _, lease in ended))
        say_json({"cleared": cleared, "nodes": nodes, "problems": problems})
    else:
        from ztprobe.cli.rendering.profile import pod_words

        for node, lease in ended:
            say(f"node {node}: lease {lease.id} ended: {lease.profile.name} is off {pod_words(lease)}")
        if not ended and not problems:
            say("no profile is in force")
        _print_problems(problems)
    if problems:
        context.exit(PreflightError.exit_code)


def verify_through(
    context: click.Context, access: AgentAccess, ids: Sequence[str], probes: int, *, as_json: bool
) -> None:
    """Measure leases of all nodes, between nodes where it takes that; exit codes as `profile verify`.

    :raises EnforcementError: no profile is in force.
    """
    from ztprobe.agent.nodes.leases import NodesLeases
    from ztprobe.agent.nodes.verification import NodeLease, NodesVerification

    agents, tls = access.agents(), access.tls()
    addresses, problems = _addresses(agents, tls)
    with NodesLeases(addresses, tls) as nodes:
        problems |= {node: str(error) for node, error in nodes.open(addresses).items()}
        everything = [
            NodeLease(node=node, state=state)
            for node, client in sorted(nodes.clients.items())
            for state in client.leases()
        ]
        _refuse_unknown(ids, {one.lease.id for one in everything}, problems)
        wanted = [one for one in everything if not ids or one.lease.id in ids]
        held = {one.lease.id for one in wanted if one.lease.pods}
        # On a node where no such pod is yet there is nothing to measure.
        wanted = [one for one in wanted if one.lease.pods or one.lease.id not in held]
        running = functools.cache(functools.partial(_running, access, frozenset(nodes.clients)))
        verification = NodesVerification(nodes, everything, running, probes=probes)
        verdicts = [(one, _verdict(verification, one)) for one in wanted]
    if as_json:
        say_json(verdicts_dict(verdicts, problems))
    else:
        print_verdicts(verdicts)
        _print_problems(problems)
    if not verdicts and not problems:
        raise EnforcementError(
            "no profile is in force, so there is nothing to verify: ztprobe profile apply --agents"
        )
    if not all(not isinstance(verdict, str) and verdict.passed for _, verdict in verdicts):
        context.exit(EnforcementError.exit_code)
    if problems:
        context.exit(PreflightError.exit_code)


def _addresses(agents: Sequence[AgentAddress], tls: Tls) -> tuple[dict[str, str], dict[str, str]]:
    from ztprobe.agent.service.node_session import addresses_by_node

    found: dict[str, str] = {}
    problems: dict[str, str] = {}
    for one in agents:
        try:
            found |= {node: there.address for node, there in addresses_by_node([one], tls).items()}
        except ZtprobeError as error:
            problems[one.address] = str(error)
    return found, problems


def _refuse_unknown(ids: Sequence[str], there: Collection[str], problems: Mapping[str, str]) -> None:
    if unknown := [one for one in ids if one not in there]:
        known = f"there are {', '.join(sorted(there))}" if there else "there are none"
        unasked = "".join(f"; {of_node(node, problem)}" for node, problem in problems.items())
        raise UsageError(f"no lease {unknown[0]}: {known}{unasked}")


def _running(access: AgentAccess, nodes: Collection[str], namespace: str) -> list[Pod]:
    from ztprobe.kubernetes.pod_source import pods_everywhere

    return [pod for pod in pods_everywhere(access.cluster.api(), namespace) if pod.node in nodes]


def _verdict(verification: NodesVerification, one: NodeLease) -> Conformance | str:
    try:
        return verification.verify(one)
    except ZtprobeError as error:
        return str(error)
