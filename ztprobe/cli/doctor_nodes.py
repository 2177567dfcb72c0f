"""``ztprobe doctor --runtime kubernetes``: what each node offers, asked of its agent."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ztprobe.cli.asking_agents import ask_agents
from ztprobe.cli.output import say_json
from ztprobe.errors import PreflightError
from ztprobe.printable import printable, printable_lines

if TYPE_CHECKING:
    from ztprobe.cli.agent_options import AgentAccess
    from ztprobe.kubernetes.network_plugins import NetworkPlugin

__all__ = ("examine_nodes",)


def examine_nodes(access: AgentAccess, *, as_json: bool) -> bool:
    """Ask all agents, and print what they say.

    :returns: whether every node has an agent that answers and offers every signal.
    :raises PreflightError: the cluster has no agents, or does not let one in to them.
    """
    from ztprobe.kubernetes.network_plugins import network_plugins

    api = access.cluster.api()
    nodes = ask_agents(access, lambda agent, status: {**agent.offers(), "lacks": status["lacks"]})
    problems: list[str] = []
    if not access.addresses:
        try:
            there = {one["metadata"]["name"] for one in api.everywhere("nodes", "", "v1") or ()}
        except PreflightError as error:
            problems.append(str(error))
        else:
            nodes |= {name: {"problem": "has no agent"} for name in there - set(nodes)}
    try:
        plugins: list[NetworkPlugin] | None = network_plugins(api)
    except PreflightError as error:
        problems.append(str(error))
        plugins = None
    problems += [
        f"node {name}: {said['problem']}" for name, said in sorted(nodes.items()) if "problem" in said
    ]
    problems += [
        f"node {name}: {signal['signal']} is missing: needs {signal['remedy']}"
        for name, said in sorted(nodes.items())
        for signal in said.get("signals", ())
        if not signal["hook"]
    ]
    if as_json:
        known = None if plugins is None else [asdict(one) for one in plugins]
        say_json({"nodes": nodes, "network_plugins": known, "problems": problems})
    else:
        _print(nodes, plugins, problems)
    return not problems


def _print(
    nodes: dict[str, dict[str, Any]], plugins: list[NetworkPlugin] | None, problems: list[str]
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 100
    answered = {name: said for name, said in sorted(nodes.items()) if "problem" not in said}
    signals = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("signal", *map(printable, answered)):
        signals.add_column(column)
    names = [signal["signal"] for said in answered.values() for signal in said["signals"]]
    for name in dict.fromkeys(names):
        cells = [
            next((one["hook"] for one in said["signals"] if one["signal"] == name), None) or "missing"
            for said in answered.values()
        ]
        signals.add_row(name, *map(printable, cells))
    for label, key, refused in (
        ("kernel", "kernel", "unknown"),
        ("delay, jitter, loss", "delay", "refused: no netem"),
        ("rate", "rate", "refused: no tbf"),
        ("cgroups", "cgroups", "unknown"),
    ):
        signals.add_row(label, *(printable(str(said[key] or refused)) for said in answered.values()))
    with console.capture() as printed:
        if answered:
            console.print(signals)
            console.print()
    click.echo(printed.get(), nl=False)
    for line in (*_plugin_words(plugins), *_lacking(answered), *(f"- {one}" for one in problems)):
        click.echo(printable_lines(line))


def _plugin_words(plugins: list[NetworkPlugin] | None) -> list[str]:
    if plugins is None:
        return []
    words = {True: "enforces NetworkPolicy", False: "enforces no NetworkPolicy"}
    found = [
        f"network plugin: {one.name} ({one.daemonset}), which"
        f" {words.get(one.enforces, 'enforces NetworkPolicy in some versions or settings')}"  # type: ignore[arg-type]
        for one in plugins
    ] or ["network plugin: none that runs as a DaemonSet and is known here"]
    return [*found, "whether policies hold is proven by trace, with packets, before round 1"]


def _lacking(answered: dict[str, dict[str, Any]]) -> list[str]:
    return [f"node {name}: its agent is {what}" for name, said in answered.items() for what in said["lacks"]]
