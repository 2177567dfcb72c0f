"""``ztprobe clean``."""

from __future__ import annotations

import os

import click

from ztprobe.errors import PreflightError

__all__ = ("clean",)


@click.command(epilog="Example: sudo ztprobe clean")
def clean() -> None:
    """Remove whatever an interrupted run left.

    That is namespaces, links, queues, mounts, cgroups and processes; runs that are still going on are
    left alone.
    """
    if os.geteuid() != 0:
        raise PreflightError("not root: removing network namespaces needs it; run it with sudo")
    from ztprobe.interrupts import shielded
    from ztprobe.runtime.journal import clean_leftovers

    with shielded():
        removed = clean_leftovers()
    for line in removed:
        click.echo(line)
    if not removed:
        click.echo("nothing to clean")
