"""``ztprobe drops``: which packets were lost, where, and by which policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ztprobe.cli.agent_options import agent_access, agents_options, tls_files
from ztprobe.cli.options import Time, cluster_access, cluster_options
from ztprobe.cli.output import say, say_json
from ztprobe.cli.policy_objects import read_files
from ztprobe.cli.profile_pods import node_option
from ztprobe.errors import UsageError

if TYPE_CHECKING:
    from analysis.results.packet_filter import PacketFilter
    from ztprobe.policy.model import Objects

__all__ = ("drops",)

_WATCHED_S = 10.0


@click.command(epilog="Example: sudo ztprobe drops --follow --selector app=fl-client --reason NETFILTER_DROP")
@click.argument("run", metavar="[RUN]", type=click.Path(path_type=Path), required=False)
@click.option(
    "--follow", is_flag=True, help="Of pods that run now, until Ctrl-C, and of pods that come meanwhile."
)
@click.option(
    "--for",
    "seconds",
    type=Time(),
    metavar="TIME",
    help="Of pods that run now, for so long (90s, 10m).  [default: 10s]",
)
@click.option("--selector", "-l", help="Of these pods that run now, as a Kubernetes label selector.")
@click.option("--run", "live_run", metavar="NAME", help="Of this run, where several are going on.")
@click.option(
    "--pod",
    "pods",
    metavar="POD",
    multiple=True,
    help="From, to or in this pod (or address); may be repeated.",
)
@click.option(
    "--reason",
    "reasons",
    metavar="REASON",
    multiple=True,
    help="Of this reason, as the kernel names it; may be repeated.",
)
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
    help="Of pods that run now, and of objects in -f that name none.",
)
@click.option(
    "--runtime",
    type=click.Choice(["local", "kubernetes"]),
    default="local",
    show_default=True,
    help="Whose pods that run now. kubernetes: a cluster's on this node, by the policies in force there.",
)
@node_option
@cluster_options
@agents_options
@click.option(
    "--filter",
    "expression",
    metavar="EXPRESSION",
    help="Only packets that it matches, in tcpdump's syntax; they begin with their IP header.",
)
@click.option(
    "--pcap",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a pcapng; reason, pods and policy are packet comments.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON, an entry for each packet; of pods that run now, one a line.",
)
def drops(
    run: Path | None,
    follow: bool,
    seconds: float | None,
    selector: str | None,
    live_run: str | None,
    pods: tuple[str, ...],
    reasons: tuple[str, ...],
    files: tuple[str, ...],
    namespace: str | None,
    runtime: str,
    node: str | None,
    context: str | None,
    kubeconfig: str | None,
    through: bool,
    addresses: tuple[str, ...],
    agents_in: str | None,
    cert: Path | None,
    key: Path | None,
    authority: Path | None,
    expression: str | None,
    pcap: Path | None,
    as_json: bool,
) -> None:
    """List packets that a kernel dropped, in a saved run or right now.

    One line for each packet or burst of packets alike: when, from whom to whom, the kernel's reason and
    place. What a packet filter dropped is explained by the policies that were in force; no policy is named
    for any other reason, nor where none selects either end. `ztprobe drops runs/net2-sec3-...` reads a saved
    run; without RUN it needs root, and watches the local runtime's pods beside whatever else watches them.
    `ztprobe drops --runtime kubernetes --agents` needs no root, and watches a namespace's pods on every node
    through the agents there.
    """
    from analysis.results.packet_filter import PacketFilter

    matching = None if expression is None else PacketFilter(expression)
    if run is None:
        from ztprobe.cli.drops_live import LiveRequest, watch_drops

        cluster = cluster_access(runtime, context, kubeconfig, namespace=namespace, node=node)
        files_given = tls_files(cert, key, authority, "--ca")
        agents = agent_access(cluster, through, addresses, agents_in, files_given)
        if cluster is not None and live_run is not None:
            raise UsageError("--run names a run of the local runtime; leave it out with --runtime kubernetes")
        if follow and seconds is not None:
            raise UsageError("--follow goes on until Ctrl-C, --for ends by itself: leave one out")
        watch_drops(
            LiveRequest(
                cluster=cluster,
                agents=agents,
                selector=selector,
                namespace=namespace,
                run=live_run,
                pods=pods,
                reasons=reasons,
                matching=matching,
                objects=read_files(files, namespace) if files else None,
                seconds=None if follow else seconds or _WATCHED_S,
                pcap=pcap,
                as_json=as_json,
            )
        )
        return
    of_cluster: dict[str, Any] = {"--node": node, "--context": context, "--kubeconfig": kubeconfig}
    of_cluster |= {"--agent": addresses, "--agents": through, "--agents-in": agents_in}
    of_cluster |= {"--cert": cert, "--key": key, "--ca": authority}
    live = (
        {"--runtime": runtime != "local"}
        | of_cluster
        | {"--follow": follow, "--for": seconds, "--selector": selector, "--run": live_run}
    )
    for option, given in live.items():
        if given:
            raise UsageError(f"{option}: is about pods that run now, and {run} is a saved run: leave one out")
    if namespace is not None and not files:
        raise UsageError(f"--namespace {namespace}: is for the objects of -f, and none were given")
    _saved(
        run,
        pods=pods,
        reasons=reasons,
        objects=read_files(files, namespace) if files else None,
        matching=matching,
        pcap=pcap,
        as_json=as_json,
    )


def _saved(
    run: Path,
    *,
    pods: tuple[str, ...],
    reasons: tuple[str, ...],
    objects: Objects | None,
    matching: PacketFilter | None,
    pcap: Path | None,
    as_json: bool,
) -> None:
    from analysis.results.drops import dropped_packets, in_bursts
    from analysis.results.drops import matching as of_interest
    from analysis.results.drops_text import burst_lines, packet_dict
    from ztprobe.rundir.store import load_run, write_atomically
    from ztprobe.rundir.temporary import scratch

    recorded = load_run(run)
    every = dropped_packets(recorded, objects)
    ends = {end for one in every for end in (one.pod, one.source, one.target)}
    _known("--pod", pods, sorted(ends | {pod["name"] for pod in recorded.meta["pods"]}))
    _known("--reason", reasons, sorted({one.reason for one in every}))
    found = of_interest(every, pods=pods, reasons=reasons)
    unseen = 0
    if matching is not None:
        unseen = sum(not one.head for one in found)
        found = [one for one in found if matching.matches(one.head)]
    if pcap is not None:
        from analysis.results.drops_pcapng import write_pcapng

        with scratch() as directory:
            written = directory / "drops.pcapng"
            write_pcapng(found, written)
            write_atomically(pcap, written.read_bytes())
    if as_json:
        say_json([packet_dict(one) for one in found])
        return
    for line in burst_lines(in_bursts(found)):
        say(line)
    lost = {kind: count for kind, count in recorded.meta["loss"].items() if count}
    more = f"; {unseen} without known bytes, which --filter leaves out" if unseen else ""
    more += f"; events lost: {', '.join(f'{kind} {count}' for kind, count in lost.items())}" if lost else ""
    say(f"{len(found)} of {len(every)} dropped packets{more}" if found else f"no dropped packet{more}")
    if pcap is not None:
        without = sum(not one.head for one in found)
        say(f"written: {pcap}{f'; {without} packets without known bytes are left out' if without else ''}")


def _known(option: str, given: tuple[str, ...], names: list[str]) -> None:
    for one in given:
        if one not in names:
            raise UsageError(f"{option} {one}: is none of this run's: {', '.join(names) or 'it has none'}")
