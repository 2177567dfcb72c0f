"""Round time with and without probes, and what the probes use while rounds run.

One job runs for every experiment, and the arms change while it runs: nothing, probes,
tcpdump on the same pods (less often: it is only there to compare with), in blocks of a few
rounds, every cycle of blocks in an order of its own. So all arms share the same processes,
connections and warm caches, and what drifts in the course of a job hits all of them. The
programs are compiled before the first block, so a change of arm takes a fraction of a round.
Rounds differ by a tenth where clients outnumber cores, so the interval comes from many short
blocks; with the round that a change spoils, a block is as long as the workload takes from one
evaluation to the next, which is why all blocks have equally many. BPF statistics are off in
these blocks; a last block with statistics on gives the programs' run time.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.spread import Ratio, paired_ratio
from ztprobe.agent import Agent, Observation
from ztprobe.experiment import parse_experiment
from ztprobe.job import run_disturbed
from ztprobe.job_request import TraceRequest
from ztprobe.netns import entered, inode
from ztprobe.probes.collector import Collector
from ztprobe.probes.kernel import KernelProbes
from ztprobe.profile import load_profile, profile_names
from ztprobe.progress import QuietProgress
from ztprobe.runtime.base import Pod, Runtime
from ztprobe.store import create_run_dir

__all__ = ("ARMS", "Plan", "RoundsResult", "measure_rounds")

ARMS = ("unprobed", "probed", "tcpdump")
_POLL_S = 0.02
_SNAPLEN_BYTES = 128  # headers: what one would capture to explain latency


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many rounds go where."""

    experiment: str
    warm_up: int
    cycles: int
    tcpdump_every: int  # cycles
    block: int  # counted rounds of a block
    lost: int  # rounds that a change of arm is expected to spoil
    cost: int  # rounds of the last block, with BPF statistics

    @property
    def rounds(self) -> int:
        """Rounds of the job."""
        return self.warm_up + len(self.order(0)) * (self.block + self.lost) + self.lost + self.cost

    def order(self, seed: int) -> list[tuple[int, str]]:
        """(cycle, arm) of every block."""
        draw, order = random.Random(seed), []
        for cycle in range(self.cycles):
            arms = ARMS if cycle % self.tcpdump_every == 0 else ARMS[:2]
            order += [(cycle, arm) for arm in draw.sample(arms, len(arms))]
        return order


@dataclass
class RoundsResult:
    """What one experiment gave."""

    plan: Plan
    # (cycle, arm) -> counted rounds in seconds
    blocks: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    observation: Observation | None = None
    observed_s: float = 0.0
    ready_s: list[float] = field(default_factory=list)
    lost_events: int = 0  # in the probed blocks

    def ratio(self, arm: str) -> Ratio | None:
        """Round time under ``arm`` over that of the unprobed block of the same cycle."""
        pairs = []
        for cycle in range(self.plan.cycles):
            mine, bare = self.blocks.get((cycle, arm)), self.blocks.get((cycle, "unprobed"))
            if mine and bare:
                pairs.append((statistics.fmean(mine), statistics.fmean(bare)))
        return paired_ratio(pairs)

    def rounds_of(self, arm: str) -> list[float]:
        """Every counted round of an arm, in seconds."""
        return [s for (_, name), seconds in self.blocks.items() if name == arm for s in seconds]


class _Unobserved(Agent):
    """Stands in for the job's own agent; the arms bring theirs."""

    def prepare(self) -> None:
        return

    def attach(self, pods: Any, node_netns: Path) -> dict[str, str]:
        return {}

    def watch(self, processes: dict[int, tuple[str, str]]) -> None:
        return

    def stop(self) -> Observation:
        return Observation(
            tables={},
            hooks={},
            probes=[],
            loss={},
            loss_log=[],
            coverage=1.0,
            events_seen=0,
            events_unread=0,
            reader_cpu_ns=0,
        )

    def close(self) -> None:
        return


class _Arms:
    """An `Interference` that changes arms at the ends of rounds."""

    def __init__(self, plan: Plan, result: RoundsResult, seed: int) -> None:
        self.plan, self.result = plan, result
        self.error: str | None = None
        self._order = plan.order(seed)
        self._kernel = KernelProbes()
        self._over = threading.Event()
        self._active = contextlib.ExitStack()
        self._agent: Agent | None = None

    @contextlib.contextmanager
    def during(self, runtime: Runtime) -> Iterator[None]:
        self._runtime = runtime
        self._pods = [pod for pod in runtime.pods if pod.labels.get("app", "").startswith("fl-")]
        thread = threading.Thread(target=self._run, name="arms")
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _run(self) -> None:
        try:
            self._kernel.load()
            self._drive()
        except Exception:
            self.error = traceback.format_exc()
        finally:
            self._active.close()
            self._kernel.close()

    def _drive(self) -> None:
        plan = self.plan
        current: tuple[int, str] | None = None
        since_ns, counted, order = 0, 0, iter(self._order)
        for number, start_ns, end_ns in self._rounds():
            if current is not None and start_ns >= since_ns and current[1] != "cost":
                self.result.blocks.setdefault(current, []).append((end_ns - start_ns) / 1e9)
                counted += 1
            if number >= plan.rounds:
                break
            if number < plan.warm_up or (current is not None and current[1] == "cost"):
                continue
            following: tuple[int, str] | None = None
            if number >= plan.rounds - plan.cost - plan.lost:
                following = (plan.cycles, "cost")
            elif current is None or counted >= plan.block:
                following = next(order, (plan.cycles, "cost"))
            if following is not None:
                self._enter(following[1])
                current, counted, since_ns = following, 0, time.monotonic_ns()
        if self._agent is not None and current is not None and current[1] == "cost":
            self.result.observed_s = (time.monotonic_ns() - since_ns) / 1e9
            self.result.observation = self._agent.stop()

    def _rounds(self) -> Iterator[tuple[int, int, int]]:
        """(round, start, end in CLOCK_MONOTONIC ns) as they end."""
        log = self._runtime.log_path("fl-server", "server")
        starts: dict[int, int] = {}
        while not log.exists():
            if self._over.wait(_POLL_S):
                return
        with log.open() as stream:
            rest = ""
            while True:
                rest += stream.read()
                *lines, rest = rest.split("\n")
                for line in lines:
                    event = json.loads(line) if line.startswith("{") else {}
                    if event.get("event") == "round_start":
                        starts[event["round"]] = event["time_monotonic_ns"]
                    elif event.get("event") == "round_end":
                        yield event["round"], starts[event["round"]], event["time_monotonic_ns"]
                if not lines and self._over.wait(_POLL_S):
                    return

    def _enter(self, arm: str) -> None:
        self._active.close()
        self._agent = None
        if arm == "tcpdump":
            self._active.enter_context(_captured(self._pods))
        elif arm == "probed":
            started_s = time.monotonic()
            self._active.enter_context(self._probed())
            self.result.ready_s.append(time.monotonic() - started_s)
        elif arm == "cost":
            agent = self._active.enter_context(Agent(statistics=True))
            agent.prepare()
            agent.attach(self._pods, self._runtime.node_netns)
            agent.watch(self._runtime.processes())
            self._agent = agent

    @contextlib.contextmanager
    def _probed(self) -> Iterator[None]:
        """What the agent does, with programs that are loaded already."""
        kernel, node = self._kernel, inode(self._runtime.node_netns)
        collector = None
        try:
            for pod in self._pods:
                kernel.trace_netns(pod.netns_inode)
            kernel.trace_netns(node, node=True)
            for pid, (_, container) in self._runtime.processes().items():
                kernel.trace_process(pid, proxy=container == "proxy")
            kernel.attach()
            for pod in self._pods:
                kernel.attach_interface(pod.netns, pod.interface)
            names = {pod.netns_inode: pod.name for pod in self._pods} | {node: "node"}
            collector = Collector(kernel, names)
            collector.start()
            yield
        finally:
            if collector is not None:
                collector.stop()
                self.result.lost_events += sum(collector.loss().values())
            kernel.detach()


@contextlib.contextmanager
def _captured(pods: list[Pod]) -> Iterator[None]:
    """tcpdump on every pod's interface."""
    directory = Path(tempfile.mkdtemp(prefix="ztprobe-bench-"))
    captures = []
    try:
        for pod in pods:
            command = ["tcpdump", "-i", pod.interface, "-s", str(_SNAPLEN_BYTES), "-n", "-Z", "root"]
            command += ["-w", str(directory / f"{pod.name}.pcap")]
            with entered(pod.netns):
                captures.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        yield
    finally:
        for process in captures:
            process.terminate()
        for process in captures:
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def measure_rounds(plan: Plan, seed: int) -> RoundsResult:
    """Run one experiment through all arms. :raises RuntimeError: the arms could not be changed."""
    experiment = parse_experiment(plan.experiment, profile_names())
    result = RoundsResult(plan)
    arms = _Arms(plan, result, seed)
    directory = Path(tempfile.mkdtemp(prefix="ztprobe-bench-"))
    request = TraceRequest(
        experiment=experiment,
        baseline=None,
        rounds=plan.rounds,
        clients=5,
        dataset="digits",
        data_dir=None,
        out=directory / "run",
        reconnect=False,
    )
    try:
        run_disturbed(
            request,
            create_run_dir(directory / "run"),
            QuietProgress(),
            offloads=not load_profile(experiment.profile).per_packet,
            profile=None,
            environment={},
            interference=arms,
            agent=_Unobserved,
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if arms.error:
        print(arms.error, file=sys.stderr)
        raise RuntimeError(f"{plan.experiment}: {arms.error.splitlines()[-1]}")
    return result
