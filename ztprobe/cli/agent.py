"""``ztprobe agent``: the agent as a service for collectors on other machines."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import click

from ztprobe.cli.agent_options import tls_files, tls_options
from ztprobe.cli.output import say, say_json
from ztprobe.errors import PreflightError

__all__ = ("agent",)

_LOOK_S = 0.5
_SOCKET = "unix:/run/ztprobe-agent.sock"


@click.group(epilog=f"Example: sudo ztprobe agent serve --listen {_SOCKET}")
def agent() -> None:
    """Run the agent as a service, and ask one how it is."""


@agent.command(
    epilog="Example: sudo ztprobe agent serve --listen 0.0.0.0:7443 --cert tls.crt --key tls.key"
    " --client-ca ca.crt"
)
@click.option(
    "--listen", default=_SOCKET, show_default=True, metavar="ADDRESS", help="ADDRESS:PORT, or unix:PATH."
)
@tls_options("--client-ca")
@click.option(
    "--caller",
    "callers",
    multiple=True,
    metavar="SPIFFE",
    help="Let in only certificates of this name; may be repeated. [default: all that the authority signed]",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIRECTORY",
    help="For events that wait for their collector. [default: beside the state directory, in memory]",
)
@click.option(
    "--queue",
    "queue_mib",
    type=click.IntRange(1, 1 << 20),
    default=256,
    show_default=True,
    metavar="MIB",
    help="How much may wait; what does not fit is lost and counted.",
)
@click.option(
    "--orphans-after",
    "orphan_s",
    type=click.IntRange(1, 86_400),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="End a session whose collector has been away for so long.",
)
@click.option(
    "--metrics",
    "metrics_listen",
    metavar="ADDRESS",
    help="ADDRESS:PORT for Prometheus: on the loopback, or for those with a certificate of the authority.",
)
@click.option(
    "--end-leases",
    is_flag=True,
    help="On the way out end every lease in the state directory: where the node's other commands run in"
    " the agent's container and end with it.",
)
def serve(
    listen: str,
    cert: Path | None,
    key: Path | None,
    authority: Path | None,
    callers: tuple[str, ...],
    state: Path | None,
    queue_mib: int,
    orphan_s: int,
    metrics_listen: str | None,
    end_leases: bool,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Whoever has a certificate of the authority may have pods of this node traced and profiles put on them:
    there is no way to listen on a network without. What a collector that is away does not take waits on
    disk; probes and profiles end with the service.
    """
    if os.geteuid() != 0:
        raise PreflightError("not root: probes and network namespaces need it; run it with sudo")
    from ztprobe.agent.service.metrics import Metrics
    from ztprobe.agent.service.privileges import lacking
    from ztprobe.agent.service.server import AgentServer, checked_address
    from ztprobe.agent.service.session import Sessions
    from ztprobe.paths import STATE_DIR
    from ztprobe.process.interrupts import shielded

    tls = tls_files(cert, key, authority, "--client-ca")
    address = checked_address(listen, tls)
    node = os.environ.get("NODE_NAME") or platform.node()
    sessions = Sessions(
        state or STATE_DIR.with_name(f"{STATE_DIR.name}-agent"),
        queue_bytes=queue_mib << 20,
        orphan_s=orphan_s,
    )
    server = metrics = None
    try:
        server = AgentServer(address, sessions, tls=tls, callers=callers, node=node)
        if metrics_listen is not None:
            metrics = Metrics(metrics_listen, tls, server.status, server.delivered, server.tally)
        say(f"the agent of {node} listens on {_said(address, server.port)}")
        for line in (*lacking(), *sessions.found):
            say(line)
        for session in sessions.all():
            rows = session.spool.queued()["rows"]
            say(f"run {session.run} was left here: {rows} events wait for its collector")
        while True:
            time.sleep(_LOOK_S)
            for line in sessions.end_orphans():
                say(line)
    finally:
        with shielded():
            for running in (metrics, server):
                if running is not None:
                    running.close()
            for line in sessions.close():
                say(line)
            for line in _end_leases() if end_leases else ():
                say(line)


def _end_leases() -> Iterator[str]:
    from ztprobe.agent.lease_keeper import end
    from ztprobe.leases import records

    for lease in records.all_leases():
        yield f"lease {lease.id} of {lease.profile.name}: {'; '.join(end(lease)) or 'had ended'}"


def _said(address: str, port: int) -> str:
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


@agent.command(epilog="Example: sudo ztprobe agent status --json")
@click.argument("address", default=_SOCKET, metavar="[ADDRESS]")
@tls_options("--ca")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(address: str, cert: Path | None, key: Path | None, authority: Path | None, as_json: bool) -> None:
    """Show what an agent does and holds: memory, pods, leases, queue.

    ADDRESS is HOST:PORT or unix:PATH.
    """
    from ztprobe.agent.service.client import Connection
    from ztprobe.cli.rendering.agent import status_lines

    connection = Connection(address, tls_files(cert, key, authority, "--ca"), patience_s=0)
    try:
        found = connection.status()
    finally:
        connection.close()
    if as_json:
        say_json(found)
        return
    for line in status_lines(found):
        say(line)
