"""``ztprobe attach``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ztprobe.cli.output import say, say_json
from ztprobe.errors import PreflightError, UsageError
from ztprobe.printable import printable

if TYPE_CHECKING:
    from ztprobe.attach.servers import Server

__all__ = ("attach",)

_LONGEST_COMMAND = 48


@click.command(epilog="Example: sudo ztprobe attach --list")
@click.option("--list", "as_list", is_flag=True, help="Show what could be traced on this machine.")
@click.option("--all", "everything", is_flag=True, help="With --list: whatever listens, not only FL servers.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def attach(as_list: bool, everything: bool, as_json: bool) -> None:
    """Show which servers run here that `ztprobe trace --attach` could trace.

    Listening processes with their framework (by what they run and have loaded), port, peers and bytes so
    far. Of no known framework are shown those that have moved a megabyte with their peers. Nothing is
    changed. Needs root, to see whose sockets are whose.
    """
    if not as_list:
        raise UsageError(
            "attach: --list shows what could be traced; `ztprobe trace --attach --server TARGET` traces it"
        )
    if os.geteuid() != 0:
        raise PreflightError("not root: whose a socket is can only be seen with it; run it with sudo")
    from ztprobe.attach.servers import servers_here

    found = servers_here(everything=everything)
    if as_json:
        say_json([one.as_dict() for one in found])
    elif found:
        _print(found)
    else:
        say("no FL server listens on this machine (--all shows whatever listens)")


def _print(servers: list[Server]) -> None:
    columns = ("target", "framework", "listens at", "peers", "sent", "received", "command")
    rows = [columns]
    for one in servers:
        rows.append(
            (
                f"pid:{one.pid}",
                f"{one.framework} {one.version or ''}".strip(),
                f"{one.address}:{one.port}" if ":" not in one.address else f"[{one.address}]:{one.port}",
                str(len(one.peers)),
                _bytes(one.sent_bytes),
                _bytes(one.received_bytes),
                _shortened(printable(one.command)),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _shortened(command: str) -> str:
    return command if len(command) <= _LONGEST_COMMAND else f"{command[: _LONGEST_COMMAND - 1]}…"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
