"""What commands print on standard output; whatever others wrote in it is made printable here."""

from __future__ import annotations

import json
from typing import Any

import click

from ztprobe.printable import escape_json, printable, printable_lines

__all__ = ("say", "say_json", "say_whole")


def say(text: str = "") -> None:
    """A line, or several."""
    click.echo(printable_lines(text))


def say_whole(text: str) -> None:
    """The same for a result that is as long as what was asked about: nothing is left out of it."""
    for line in text.split("\n"):
        click.echo(printable(line, len(line)))


def say_json(value: Any) -> None:
    """Plain data for a program to read."""
    click.echo(escape_json(json.dumps(value, indent=2, ensure_ascii=False)))
