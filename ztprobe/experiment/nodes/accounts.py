"""What the agents of several nodes tell at the end, as one account. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ztprobe.agent.interface import Account
from ztprobe.agent.service.node_session import NodeSession
from ztprobe.experiment.nodes.tables import server_time_ns
from ztprobe.probes.collector import coverage

__all__ = ("account_of",)

_COUNTED = ("run_count", "run_time_ns", "recursion_missed")  # of a probe


def account_of(nodes: Sequence[NodeSession]) -> Account:
    """Sums, but for what differs from kernel to kernel, which is the server's node's.

    :param nodes: all stopped; the server's first.
    """
    told = [(node, node.account) for node in nodes if node.account is not None]
    accounts = [account for _, account in told]
    first = accounts[0]
    loss = Counter[str]()
    memory = Counter[str]()
    for account in accounts:
        loss.update(account.loss)
        memory.update(account.memory)
    seen = sum(account.events_seen for account in accounts)
    unread = sum(account.events_unread for account in accounts)
    observed = {pod: one for account in accounts for pod, one in account.observed.items()}
    has_died = any(account.coverage == 0.0 for account in accounts)
    channels: dict[str, int] = {**first.loss, **loss}
    return Account(
        hooks={signal: hook for account in reversed(accounts) for signal, hook in account.hooks.items()},
        probes=_probes(accounts),
        loss=channels,
        loss_log=[entry for node, account in told for entry in _loss_log(node, nodes[0], account)],
        coverage=0.0 if has_died else coverage(seen, {"unknown_pod": 0, **channels}, unread=unread),
        events_seen=seen,
        events_unread=unread,
        reader_cpu_ns=sum(account.reader_cpu_ns for account in accounts),
        memory=dict(memory),
        drop_reasons=first.drop_reasons,
        drop_places={place: name for one in reversed(accounts) for place, name in one.drop_places.items()},
        emulation=_emulation(accounts),
        observed=observed,
        schedule=first.schedule,
        problem=next((account.problem for account in accounts if account.problem), None),
    )


def _emulation(accounts: Sequence[Account]) -> dict[str, Any]:
    """What the server's node's backend counted, and what all of them cost."""
    cpu_ns = sum(int(account.emulation.get("cpu_ns", 0)) for account in accounts)
    return {**accounts[0].emulation, "cpu_ns": cpu_ns} if accounts[0].emulation else {}


def _probes(accounts: Sequence[Account]) -> list[dict[str, Any]]:
    """The cost of each, on all nodes together."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for account in accounts:
        for one in account.probes:
            counted = {name: value for name, value in one.items() if name in _COUNTED}
            key = tuple((name, value) for name, value in one.items() if name not in counted)
            known = found.setdefault(key, {**one, **dict.fromkeys(counted, 0)})
            for name, value in counted.items():
                known[name] += value
    return list(found.values())


def _loss_log(node: NodeSession, server: NodeSession, account: Account) -> list[dict[str, Any]]:
    if node is server:
        return list(account.loss_log)
    clocks = node.clock, server.clock
    return [
        {
            name: server_time_ns(value, *clocks) if name in ("from_ns", "to_ns") else value
            for name, value in entry.items()
        }
        for entry in account.loss_log
    ]
