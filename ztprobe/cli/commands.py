"""The commands, each imported when it is run or asked about."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any

import click

from ztprobe.cli.command_names import COMMANDS

__all__ = ("CommandGroup",)


class _Commands(MutableMapping[str, click.Command]):
    """Click's mapping of a group's commands, which imports one when it is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        module, _ = COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(f"ztprobe.cli.{module}"), name)
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        raise TypeError(f"{name}: commands stand in ztprobe.cli.command_names")

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: commands stand in ztprobe.cli.command_names")

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
        """As click does, from the sentences of `ztprobe.cli.command_names`."""
        limit = formatter.width - 6 - max(map(len, COMMANDS))
        listed = [click.Command(name, help=words) for name, (_, words) in sorted(COMMANDS.items())]
        with formatter.section("Commands"):
            formatter.write_dl([(str(one.name), one.get_short_help_str(limit)) for one in listed])
