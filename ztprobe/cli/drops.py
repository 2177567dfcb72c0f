"""``ztprobe drops``: which packets a run lost, where, and by which policy."""

from __future__ import annotations

from pathlib import Path

import click

from ztprobe.cli.output import say, say_json
from ztprobe.cli.policy_objects import read_files
from ztprobe.errors import UsageError

__all__ = ("drops",)


@click.command(epilog="Example: ztprobe drops runs/net2-sec3-20260131-120000 --reason NETFILTER_DROP")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
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
@click.option("-n", "--namespace", metavar="NAMESPACE", help="Of objects in -f that name none.")
@click.option(
    "--pcap",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a pcapng; reason, pods and policy are packet comments.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, an entry for each packet.")
def drops(
    run: Path,
    pods: tuple[str, ...],
    reasons: tuple[str, ...],
    files: tuple[str, ...],
    namespace: str | None,
    pcap: Path | None,
    as_json: bool,
) -> None:
    """List the packets that a saved run's kernel dropped.

    One line for each packet or burst of packets alike: when, from whom to whom, the kernel's reason and
    place. What a packet filter dropped is explained by the policies that were in force; no policy is named
    for any other reason, nor where none selects either end.
    """
    from analysis.results.dropped import dropped_packets, in_bursts, matching
    from analysis.results.dropped_text import burst_lines, packet_dict
    from ztprobe.rundir.store import load_run, write_atomically
    from ztprobe.rundir.temporary import scratch

    if namespace is not None and not files:
        raise UsageError(f"--namespace {namespace}: is for the objects of -f, and none were given")
    objects = read_files(files, namespace) if files else None
    recorded = load_run(run)
    every = dropped_packets(recorded, objects)
    ends = {end for one in every for end in (one.pod, one.source, one.target)}
    _known("--pod", pods, sorted(ends | {pod["name"] for pod in recorded.meta["pods"]}))
    _known("--reason", reasons, sorted({one.reason for one in every}))
    found = matching(every, pods=pods, reasons=reasons)
    if pcap is not None:
        from analysis.results.dropped_pcapng import write_pcapng

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
    more = f"; events lost: {', '.join(f'{kind} {count}' for kind, count in lost.items())}" if lost else ""
    say(f"{len(found)} of {len(every)} dropped packets{more}" if found else f"no dropped packet{more}")
    if pcap is not None:
        without = sum(not one.head for one in found)
        say(f"written: {pcap}{f'; {without} packets without known bytes are left out' if without else ''}")


def _known(option: str, given: tuple[str, ...], names: list[str]) -> None:
    for one in given:
        if one not in names:
            raise UsageError(f"{option} {one}: is none of this run's: {', '.join(names) or 'it has none'}")
