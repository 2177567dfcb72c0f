"""``ztprobe agent``: the agent as a service for collectors on other machines."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ztprobe.cli.agent_options import agent_access, agents_options, tls_files, tls_options
from ztprobe.cli.asking_agents import ask_agents
from ztprobe.cli.options import cluster_access, cluster_options
from ztprobe.cli.output import say, say_json
from ztprobe.errors import PreflightError, UsageError
from ztprobe.printable import printable_lines

if TYPE_CHECKING:
    from ztprobe.agent.service.wire import TlsFiles

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
    from ztprobe.agent.memory import hold_little
    from ztprobe.agent.service.metrics import Metrics
    from ztprobe.agent.service.privileges import lacking
    from ztprobe.agent.service.server import AgentServer, checked_address
    from ztprobe.agent.service.session import Sessions
    from ztprobe.paths import STATE_DIR
    from ztprobe.process.interrupts import shielded

    hold_little()
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


@agent.command(epilog="Example: ztprobe agent status --agents --context lab")
@click.argument("address", default=None, required=False, metavar="[ADDRESS]")
@cluster_options
@agents_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def status(ctx: click.Context, /, address: str | None, as_json: bool, **given: Any) -> None:
    """Show what an agent does and holds: memory, pods, leases, queue.

    ADDRESS is HOST:PORT or unix:PATH; without one it is this machine's agent. With --agents all agents of a
    cluster are asked, node by node, without root; 3 if one of them does not answer.
    """
    from ztprobe.cli.rendering.agent import status_lines

    is_many = given["through"] or given["addresses"]
    cluster = cluster_access("kubernetes" if is_many else None, given["context"], given["kubeconfig"])
    files = tls_files(given["cert"], given["key"], given["authority"], "--ca")
    if not is_many:
        if given["agents_in"] is not None:
            raise UsageError("--agents-in: is about a cluster's agents: give --agents")
        found = _status_of(address or _SOCKET, files)
        if as_json:
            say_json(found)
        else:
            say("\n".join(status_lines(found)))
        return
    if address is not None:
        raise UsageError(f"{address}: with --agents a cluster's agents are asked; leave the address out")
    access = agent_access(cluster, given["through"], given["addresses"], given["agents_in"], files)
    assert access is not None  # there are agents to be asked
    nodes = ask_agents(access, lambda _, status: status)
    if as_json:
        say_json({"nodes": nodes})
    else:
        for name, found in sorted(nodes.items()):
            lines = [f"agent on {name}: {found['problem']}"] if "problem" in found else status_lines(found)
            say("\n".join(map(printable_lines, lines)))
    if any("problem" in found for found in nodes.values()):
        ctx.exit(PreflightError.exit_code)


def _status_of(address: str, files: TlsFiles | None) -> dict[str, Any]:
    from ztprobe.agent.service.client import Connection

    connection = Connection(address, files, patience_s=0)
    try:
        return connection.status()
    finally:
        connection.close()
