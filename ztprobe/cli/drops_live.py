"""``ztprobe drops`` without RUN: packets that pods which run now lose, as they are lost."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ztprobe.cli.drops_pods import CLUSTER, FilterCounts, LiveRequest, WatchedPods
from ztprobe.cli.output import say
from ztprobe.errors import PreflightError, UsageError
from ztprobe.printable import escape_json, printable_lines
from ztprobe.process.interrupts import Interrupted

if TYPE_CHECKING:
    from analysis.results.drops import DropBurst
    from analysis.results.drops_live import LiveDrop
    from analysis.results.drops_pcapng import DropWriter
    from ztprobe.cli.drops_nodes import WatchedNodes
    from ztprobe.cli.drops_sources import AgentSources, DropSource, HereSources

__all__ = ("LiveRequest", "watch_drops")

_WAIT_S = 0.05
_BATCH_S = 0.02  # after packets came: more of them together
_LOOK_S = 0.25  # for pods that come and go
_FEW = 6
_CTRL_C = 130


def watch_drops(request: LiveRequest) -> None:
    """Print drops until the time is over or Ctrl-C.

    :raises ZtprobeError: no pods run, or nobody lets us watch them.
    """
    if request.agents is not None and request.cluster is not None:
        from ztprobe.cli.drops_nodes import WatchedNodes
        from ztprobe.cli.drops_sources import connected

        with connected(request.agents, _aside) as agents, _Told(request) as told:
            _check_reasons(request.reasons, agents.reasons)
            nodes = WatchedNodes(request, request.cluster, agents)
            nodes.look()
            nodes.check()
            _Watching(request, agents, nodes, told).until_over()
            told.publish()
        return
    from ztprobe.cli.drops_sources import HereSources
    from ztprobe.probes.drop_watch import DropWatch

    if os.geteuid() != 0:
        through = ", or ask its agents: --agents" if request.cluster is not None else ""
        raise PreflightError(f"watching what a kernel drops needs root: run it with sudo{through}")
    there = WatchedPods(request)
    there.look()
    there.check()
    with DropWatch() as watch, _Told(request) as told:
        watch.load()
        _check_reasons(request.reasons, set(watch.reason_names.values()))
        _Watching(request, HereSources(watch), there, told).until_over()
        told.publish()


def _aside(text: str) -> None:
    click.echo(printable_lines(text), err=True)


def _check_reasons(reasons: Iterable[str], names: set[str]) -> None:
    import difflib

    for reason in reasons:
        if reason not in names:
            near = difflib.get_close_matches(reason.upper(), names, n=3, cutoff=0.4)
            raise UsageError(
                f"--reason {reason}: this kernel drops for no such reason; near: {', '.join(near) or 'none'}"
            )


class _Told:
    # Where lines and packets go.

    def __init__(self, request: LiveRequest) -> None:
        self._request = request
        self._open = contextlib.ExitStack()
        self._writer: DropWriter | None = None
        self._written: Path | None = None
        self.several_runs = request.agents is not None  # each line names its node

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def packet(self, drop: LiveDrop) -> None:
        """Into the file, if there is to be one."""
        from analysis.results.drops_pcapng import DropWriter, is_writable
        from ztprobe.rundir.temporary import scratch

        if self._request.pcap is None or drop.is_counted or not is_writable(drop.packet):
            return
        if self._writer is None:
            self._written = self._open.enter_context(scratch()) / "drops.pcapng"
            self._writer = self._open.enter_context(DropWriter(self._written))
        self._writer.write(drop.packet)

    def burst(self, burst: DropBurst) -> None:
        """As a line, or as JSON on one line."""
        from analysis.results.drops_text import burst_dict, burst_lines

        if self._request.as_json:
            whose = {"run": burst.run}
            if self._request.agents is not None:
                whose = {"run": CLUSTER, "node": burst.run}
            value = whose | burst_dict(burst)
            click.echo(escape_json(json.dumps(value, ensure_ascii=False, separators=(",", ":"))))
            return
        lines = list(burst_lines([burst]))
        say("\n".join([f"{burst.run}  {lines[0]}" if self.several_runs else lines[0], *lines[1:]]))

    def summary(self, text: str) -> None:
        """A last line, out of the way of a program that reads."""
        click.echo(printable_lines(text), err=self._request.as_json)

    def publish(self) -> None:
        """Put the file where it was asked for. :raises RunDirError: it cannot be written."""
        from ztprobe.rundir.store import write_atomically

        if self._request.pcap is None:
            return
        if self._writer is None or self._written is None:
            self.summary(f"not written: {self._request.pcap}: no dropped IP packet was seen whole")
            return
        packets = self._writer.packets
        self._writer.close()
        write_atomically(self._request.pcap, self._written.read_bytes())
        self.summary(f"written: {self._request.pcap}, the first bytes of {packets} packets")


@dataclass(kw_only=True)
class _Totals:
    packets: int = 0  # that were asked for
    normal: int = 0  # ... and are part of normal work
    others: int = 0
    kinds: set[bytes] = field(default_factory=set)


class _Watching:
    def __init__(
        self,
        request: LiveRequest,
        seen: HereSources | AgentSources,
        there: WatchedPods | WatchedNodes,
        told: _Told,
    ) -> None:
        self._request, self._seen, self._there, self._told = request, seen, there, told
        self._totals = _Totals()
        self._filters = FilterCounts()
        self._differences: dict[str, tuple[int, int]] = {}

    def until_over(self) -> None:
        """Until the time is over, or somebody ends it."""
        self._renew()
        self._seen.start()
        self._note()
        self._filters.look(self._there.pods)
        self._announce()
        started_s = time.monotonic()
        interrupt: Interrupted | None = None
        try:
            self._loop(started_s)
        except Interrupted as ended:
            interrupt = ended
        self._differences = self._filters.differences()  # first: what comes later may be seen, not counted
        self._seen.stop()
        self._take(last=True)
        for source in self._seen.sources:
            for burst in source.lines.rest():
                self._told.burst(burst)
        self._told.summary(self._summary(time.monotonic() - started_s))
        if interrupt is not None and interrupt.exit_code != _CTRL_C:
            self._told.publish()
            raise interrupt

    def _loop(self, started_s: float) -> None:
        seconds, looked_s = self._request.seconds, started_s
        while seconds is None or time.monotonic() - started_s < seconds:
            self._seen.wait(_WAIT_S)
            came = self._take()
            for source in self._seen.sources:
                for burst in source.lines.over(source.now_ns()):
                    self._told.burst(burst)
            if time.monotonic() - looked_s > _LOOK_S:
                looked_s = time.monotonic()
                before = self._there.pods
                self._note()
                if self._there.look():
                    self._renew()
                    self._filters.look(self._there.pods)
                    if self._there.pods != before:
                        self._announce()
            if came:
                time.sleep(_BATCH_S)

    def _note(self) -> None:
        for note in self._there.fresh_notes():
            _aside(note)

    def _renew(self) -> None:
        self._seen.know(self._there.deployments, self._there.pods)
        self._told.several_runs = len(self._there.deployments) > 1 or self._request.agents is not None

    def _announce(self) -> None:
        names = [pod.name for pod in self._there.pods]
        some = ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")
        runs = ", ".join(one.name for one in self._there.deployments)
        cluster = self._request.cluster
        whose = f"namespace {cluster.namespace}" if cluster is not None else f"run {runs}"
        nodes = (
            f" on {', '.join(one.name for one in self._there.deployments)}" if self._request.agents else ""
        )
        what = f"watching {whose}{nodes}: {some}" if names else "no pods are running: waiting for some"
        until = f"for {self._request.seconds:g} s" if self._request.seconds is not None else "Ctrl-C ends it"
        _aside(f"{what}; {until}")

    def _take(self, *, last: bool = False) -> bool:
        came = False
        for source in self._seen.sources:
            for drop in source.take(last=last):
                came = True
                self._one(source, drop)
        return came

    def _one(self, source: DropSource, drop: LiveDrop) -> None:
        if drop.packet.pod == "node" and drop.packet.reason == "NETFILTER_DROP":
            self._filters.seen[drop.deployment] = self._filters.seen.get(drop.deployment, 0) + drop.packets
        if not self._is_asked_for(drop):
            self._totals.others += drop.packets
            return
        self._totals.packets += drop.packets
        self._totals.normal += drop.packets if drop.packet.noise else 0
        self._totals.kinds.add(drop.kind)
        self._told.packet(drop)
        burst = source.lines.take(drop)
        if burst is not None:
            self._told.burst(burst)

    def _is_asked_for(self, drop: LiveDrop) -> bool:
        request, packet = self._request, drop.packet
        ends = {packet.pod, packet.source, packet.target}
        if self._there.selects and not any((drop.deployment, end) in self._there.chosen for end in ends):
            return False
        if request.pods and ends.isdisjoint(request.pods):
            return False
        if request.reasons and packet.reason not in request.reasons:
            return False
        return request.matching is None or request.matching.matches(packet.head)

    def _summary(self, lasted_s: float) -> str:
        from analysis.report.wording import plural

        sources, totals = self._seen.sources, self._totals
        accounts = [source.account() for source in sources]
        said = [f"{plural(totals.packets, 'dropped packet')} in {lasted_s:.1f} s"]
        if totals.packets:
            said[0] += f", of {plural(len(totals.kinds), 'kind')}"
        said += [f"{totals.normal} of them part of normal work"] if totals.normal else []
        said += [f"{totals.others} others not asked for"] if totals.others else []
        unplaced = sum(one.uncounted for one in accounts) + sum(source.untold for source in sources)
        said += [f"{unplaced} more of too many kinds to tell apart"] if unplaced else []
        for run, (own, more) in self._differences.items():
            if more > 0:
                said.append(f"the packet filter of run {run} counted {own} drops, {more} more than were seen")
        if missed := sum(one.missed_runs for one in accounts):
            said.append(f"up to {missed} not seen: the kernel left out that many runs of the probe")
        if coverage := self._there.coverage():
            said.append(coverage)
        return "; ".join(said)
