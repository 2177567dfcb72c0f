"""``ztprobe diagnose``: why a round failed, stalled or was slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ztprobe.cli.agent_observation import are_asked, named, nodes_request
from ztprobe.cli.agent_options import agents_options
from ztprobe.cli.options import Time, cluster_options
from ztprobe.cli.output import say, say_json
from ztprobe.cli.policy_objects import read_files
from ztprobe.errors import UsageError

__all__ = ("diagnose",)

_SERVER = "app=fl-server"  # as our own manifests have it


@click.command(epilog="Example: ztprobe diagnose runs/net2-sec3-20260131-120000")
@click.argument("run", metavar="[RUN|FILE.pcapng]", type=click.Path(path_type=Path), required=False)
@click.option("--live", is_flag=True, help="Of the run that goes on now, until it ends or Ctrl-C.")
@click.option(
    "--for",
    "seconds",
    type=Time(),
    metavar="TIME",
    help="With --live: for so long (90s, 10m).",
)
@click.option("--run", "live_run", metavar="NAME", help="With --live: of this run, where several go on.")
@click.option(
    "-f",
    "files",
    metavar="OBJECTS.yaml",
    multiple=True,
    help="The policies and namespaces that were in force.  [default: those that the run recorded]",
)
@click.option(
    "-n",
    "--namespace",
    metavar="NAMESPACE",
    help="Of objects in -f that name none; with --agents: of the pods.  [default: default]",
)
@click.option(
    "--server", metavar="LABELS", help="With --agents: of the server's pod.  [default: app=fl-server]"
)
@click.option(
    "--client",
    "clients",
    metavar="LABELS",
    multiple=True,
    help="With --agents; may be repeated.  [default: whoever is connected to the server]",
)
@cluster_options
@agents_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --live, one diagnosis a line.")
def diagnose(
    run: Path | None,
    live: bool,
    seconds: float | None,
    live_run: str | None,
    files: tuple[str, ...],
    namespace: str | None,
    server: str | None,
    clients: tuple[str, ...],
    as_json: bool,
    **agents: Any,
) -> None:
    """Say why rounds of a saved run failed, stalled or were slow.

    RUN is a run directory, also one of a run that failed. Causes come in order, each with the evidence as a
    timeline, what it cost and what to change; a policy that blocks comes with the rule that is missing. A run
    in which nothing went wrong has no cause, and that is said. Of a pcapng file that others recorded it says
    what can be said without the kernel's own word, and what cannot.

    `sudo ztprobe diagnose --live --for 60` says the same of a run that goes on, from what was seen so far, at
    once and each time that it changes; nothing is written. `ztprobe diagnose --live --agents -n fl` needs no
    root, and watches a deployment on a cluster's nodes through the agents there.
    """
    from analysis.causes.capture_file import is_capture
    from analysis.causes.diagnosis import diagnose_run
    from analysis.causes.diagnosis_text import diagnosis_lines
    from ztprobe.rundir.store import load_run

    if are_asked(agents):
        if not live or run is not None or live_run is not None or files:
            raise UsageError("--agents and --agent: go with --live, and with no RUN, --run or -f")
        from ztprobe.cli.diagnose_live import watch_nodes

        of_agents = {**agents, "namespace": namespace}
        request = nodes_request(of_agents, server=server or _SERVER, clients=clients)
        watch_nodes(request, seconds=seconds, as_json=as_json)
        return
    for option, wanted in {"--server": server, "--client": clients, **named(agents)}.items():
        if wanted:
            raise UsageError(f"{option}: is about a cluster's pods: add --live and --agents")
    if namespace is not None and not files:
        raise UsageError(f"--namespace {namespace}: is for the objects of -f, and none were given")
    if live:
        from ztprobe.cli.diagnose_live import watch_causes

        if run is not None:
            raise UsageError(f"--live is about a run that goes on now, and {run} is saved: leave one out")
        objects = read_files(files, namespace) if files else None
        watch_causes(live_run, objects, seconds=seconds, as_json=as_json)
        return
    for option, given in {"--for": seconds, "--run": live_run}.items():
        if given is not None:
            raise UsageError(f"{option} belongs to --live: give both")
    if run is None:
        raise UsageError("give a RUN directory or a pcapng file, or --live for the run that goes on now")
    if is_capture(run):
        if files:
            raise UsageError(f"-f {files[0]}: a capture names no pods, so no policies can be asked")
        _capture(run, as_json)
        return
    found = diagnose_run(load_run(run), read_files(files, namespace) if files else None)
    if as_json:
        say_json(found)
        return
    for line in diagnosis_lines(found):
        say(line)


def _capture(path: Path, as_json: bool) -> None:
    from analysis.causes.capture import diagnose_capture
    from analysis.causes.diagnosis_text import capture_lines

    found = diagnose_capture(path)
    if as_json:
        say_json(found)
        return
    for line in capture_lines(found):
        say(line)
