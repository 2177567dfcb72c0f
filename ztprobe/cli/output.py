"""What commands print on standard output; whatever others wrote in it is made printable here."""

from __future__ import annotations

import json
from typing import Any

import click

from ztprobe.printable import escape_json, printable_lines

__all__ = ("say", "say_json")


def say(text: str = "") -> None:
    """A line, or several."""
    click.echo(printable_lines(text))


def say_json(value: Any) -> None:
    """Plain data for a program to read."""
    click.echo(escape_json(json.dumps(value, indent=2, ensure_ascii=False)))
