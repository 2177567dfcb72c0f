"""``ztprobe clean``."""

from __future__ import annotations

import os

import click

from ztprobe.cli.output import say
from ztprobe.errors import PreflightError

__all__ = ("clean",)


@click.command(epilog="Example: sudo ztprobe clean")
def clean() -> None:
    """Remove whatever an interrupted run left.

    That is namespaces, links, queues, mounts, cgroups and processes, probes on others' interfaces, and
    network profiles that nobody keeps any more; also the logs of failed runs that were kept in the
    temporary directory. Runs that are still going on, and leases in force, are left alone.
    """
    if os.geteuid() != 0:
        raise PreflightError("not root: removing network namespaces needs it; run it with sudo")
    from ztprobe.agent.lease_keeper import sweep
    from ztprobe.attach import leftovers
    from ztprobe.conformance import policy_bypass
    from ztprobe.process.interrupts import shielded
    from ztprobe.rundir import temporary
    from ztprobe.runtime.local.journal import clean_leftovers

    with shielded():
        removed = sweep() + policy_bypass.sweep() + clean_leftovers() + leftovers.sweep() + temporary.clean()
    for line in removed:
        say(line)
    if not removed:
        say("nothing to clean")
