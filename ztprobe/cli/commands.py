"""The commands by name, each imported when it is run or asked about: help has to appear at once."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any

import click

__all__ = ("COMMANDS", "CommandGroup")

# Name -> its module here, and the first sentence of its help, so that a list of all imports none.
COMMANDS = {
    "trace": ("trace", "Run a deployment and say where each round's time went."),
    "attach": ("attach", "Show which servers run here that `ztprobe trace --attach` could trace."),
    "sweep": ("sweep", "Run a whole study: every combination of its factors."),
    "reproduce": ("reproduce", "Run a published study's corners anew and say whether they agree."),
    "limits": ("limits", "Find out where a deployment stops working, and what breaks."),
    "report": ("report", "Analyse saved runs again, without root."),
    "compare": ("compare", "Say how runs differ from the first, part by part, with intervals."),
    "whatif": ("whatif", "Predict how long rounds would take without a component."),
    "export": ("export", "Write a run's results for other programs and for papers."),
    "drops": ("drops", "List packets that a kernel dropped, in a saved run or right now."),
    "diagnose": ("diagnose", "Say why rounds of a saved run failed, stalled or were slow."),
    "profile": ("profile", "Put network conditions on running pods, verified, and undone."),
    "policy": ("policy", "Explain and check NetworkPolicies and their cluster-wide kin."),
    "agent": ("agent", "Run the agent as a service, and ask one how it is."),
    "deploy": ("deploy", "Put the agent or an experiment's workload on a cluster."),
    "undeploy": ("deploy", "Remove what `ztprobe deploy` has put on a cluster."),
    "doctor": ("doctor", "Say what this machine offers, and whether the main job can run."),
    "clean": ("clean", "Remove whatever an interrupted run left."),
    "validate": ("validate", "Put known costs into real runs and hold the ledger against them."),
}


class _Commands(MutableMapping[str, click.Command]):
    """Click's mapping of a group's commands, which imports one when it is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        module, _ = COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(f"ztprobe.cli.{module}"), name)
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        raise TypeError(f"{name}: commands stand in ztprobe.cli.commands")

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: commands stand in ztprobe.cli.commands")

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class CommandGroup(click.Group):
    """All commands, and their list without importing any."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.commands = _Commands()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, from the sentences that stand here."""
        limit = formatter.width - 6 - max(map(len, COMMANDS))
        listed = [click.Command(name, help=words) for name, (_, words) in sorted(COMMANDS.items())]
        with formatter.section("Commands"):
            formatter.write_dl([(str(one.name), one.get_short_help_str(limit)) for one in listed])
