"""``ztprobe doctor``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ztprobe.cli.agent_options import agent_access, agents_options, tls_files
from ztprobe.cli.options import cluster_access, cluster_options
from ztprobe.cli.output import say_json
from ztprobe.errors import PreflightError
from ztprobe.printable import printable

if TYPE_CHECKING:
    from ztprobe.preflight import Machine, SignalHook

__all__ = ("doctor",)

_MAIN_JOB = ("net0-sec0", "net2-sec3")


@click.command(epilog="Example: sudo ztprobe doctor --json")
@click.option(
    "--runtime",
    type=click.Choice(("local", "kubernetes")),
    default="local",
    help="This machine, or a cluster's nodes, asked of their agents.  [default: local]",
)
@cluster_options
@agents_options
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.pass_context
def doctor(ctx: click.Context, /, runtime: str, as_json: bool, **given: Any) -> None:
    """Say what this machine offers, and whether the main job can run.

    Signal by signal: which hook this kernel offers, what is missing, what would provide it. Exits with
    0 if the main job can run and with 3 if not. Nothing is changed; what has to be tried is tried in a
    network namespace that vanishes with the try.

    With --runtime kubernetes the same node by node, without root: what each node's kernel offers, what its
    agent lacks, which nodes have none, and which network plugin is there; 3 if anything is missing.
    """
    cluster = cluster_access(runtime, given["context"], given["kubeconfig"])
    files = tls_files(given["cert"], given["key"], given["authority"], "--ca")
    through = given["through"] or (cluster is not None and not given["addresses"])
    access = agent_access(cluster, through, given["addresses"], given["agents_in"], files)
    if access is not None:
        from ztprobe.cli.doctor_nodes import examine_nodes

        if not examine_nodes(access, as_json=as_json):
            ctx.exit(PreflightError.exit_code)
        return
    from ztprobe.experiment.names import parse_experiment
    from ztprobe.experiment.requirements import machine_problems
    from ztprobe.preflight import choose_hooks, collect

    experiments = [parse_experiment(name, ("net0", "net2")) for name in _MAIN_JOB]
    machine = collect()
    hooks = choose_hooks(machine.kernel)
    problems = machine_problems(machine, experiments)
    if as_json:
        say_json(_as_dict(machine, hooks, problems))
    else:
        _print(machine, hooks, problems)
    if problems:
        ctx.exit(PreflightError.exit_code)


def _as_dict(machine: Machine, hooks: tuple[SignalHook, ...], problems: list[str]) -> dict[str, Any]:
    from ztprobe.experiment.requirements import delay_backend, rate_backend

    kernel = asdict(machine.kernel)
    for key in ("raw_tracepoints", "congestion_controls"):
        kernel[key] = sorted(kernel[key])
    return {
        "can_run": not problems,
        "problems": problems,
        "signals": [asdict(hook) for hook in hooks],
        "emulation": {"delay": delay_backend(machine), "rate": rate_backend(machine.kernel)},
        "kernel": kernel,
        "programs": dict(machine.tools.binaries),
        "modules": dict(machine.tools.modules),
    }


def _print(machine: Machine, hooks: tuple[SignalHook, ...], problems: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 100  # a pipe has no width, and rich would take 80
    signals = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("signal", "hook", "gives"):
        signals.add_column(column)
    for hook in hooks:
        signals.add_row(hook.signal, hook.hook or f"missing: needs {hook.remedy}", hook.gives)
    facts = Table(box=None, pad_edge=False, show_header=False)
    for name, value in _facts(machine):
        facts.add_row(name, printable(value))
    with console.capture() as printed:
        console.print(signals)
        console.print()
        console.print(facts)
        console.print()
        for problem in problems:
            console.print(f"- {problem}", markup=False, soft_wrap=True)
        console.print("The main job can run." if not problems else "The main job cannot run here.")
    click.echo(printed.get(), nl=False)  # rich itself would exit where nobody reads any more


def _facts(machine: Machine) -> list[tuple[str, str]]:
    from ztprobe.experiment.requirements import delay_backend, rate_backend

    kernel, tools = machine.kernel, machine.tools
    return [
        ("kernel", kernel.release + ("" if kernel.root else " (not root: nothing could be tried)")),
        ("delay, jitter, loss", delay_backend(machine) or "missing"),
        ("rate", rate_backend(kernel) or "missing"),
        ("congestion control", ", ".join(sorted(kernel.congestion_controls))),
        ("cgroups", kernel.cgroup_layout),
        ("programs", _versions(tools.binaries)),
        ("Python modules", _versions(tools.modules)),
    ]


def _versions(found: Any) -> str:
    return ", ".join(
        f"{name} missing" if version is None else f"{name} {version}".rstrip()
        for name, version in found.items()
    )
