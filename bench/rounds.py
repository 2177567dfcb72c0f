"""Round time with and without probes, and what the probes use while rounds run.

One job runs for every experiment, and the arms change while it runs: nothing, probes,
tcpdump on the same pods (less often: it is only there to compare with), in blocks of a few
rounds, every cycle of blocks in an order of its own. So all arms share the same processes,
connections and warm caches, and what drifts in the course of a job hits all of them. The
programs are compiled before the first block, so a change of arm takes some 0.05 s; the round that it
falls into is not counted, unless it is so long that this is next to nothing. BPF statistics are
off in these blocks; a last block with statistics on gives the programs' run time, beside that of
empty programs on the same hooks.

What is estimated is the ratio of a typical pair of neighbouring blocks, and beside it the mean
ratio (`bench.spread`). What makes rounds differ, and what is done about it:

- Under net0, clients outnumber cores, and every fifth round evaluates. Blocks of four rounds, with the
  one that a change spoils, hold one evaluation each, and there are many of them.
- Under net2, jitter reorders packets, TCP takes that for loss and shrinks its window. Over many
  rounds it learns how far packets overtake each other (359 segments sent again in the second round,
  some 20 from the fifteenth on), and the window grows again: 16.7, 9.9, 9.3, 7.6, 6.5 s in the first
  rounds of a job, 4.3 s in the twelfth, and 3.3 to 3.8 s from the fifteenth on. With a new
  connection every round (``--reconnect``), all rounds are like the first ones (10 to 17 s). So a job is
  warm after some twenty rounds, and before that any two blocks differ by more than probes cost.
  Afterwards a connection may still be thrown back; that outlasts a block, so both blocks of a pair see it
  unless it begins in between. What the kernel has sent again in the blocks of each arm is
  printed: it says whether both met the same. The packets' own delays cannot be repeated in the
  other arm: they are drawn packet by packet, and no two rounds send the same packets in the same order.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pandas as pd

from bench.floor import empty_programs, read_empty
from bench.traffic import tcp_counters
from ztprobe.agent.interface import Account
from ztprobe.agent.node_agent import NodeAgent
from ztprobe.experiment.names import parse_experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.experiment.run import run
from ztprobe.experiment.spec import spec_of
from ztprobe.kernelnet.netns import entered, inode
from ztprobe.pods.model import Pod
from ztprobe.probes.collector import Collector
from ztprobe.probes.kernel import KernelProbes, ProgramCost
from ztprobe.profile.model import load_profile, profile_names
from ztprobe.progress import QuietProgress
from ztprobe.rundir.logs import GrowingLog
from ztprobe.rundir.store import create_run_dir
from ztprobe.rundir.temporary import scratch
from ztprobe.runtime.interface import Runtime

__all__ = ("ARMS", "Plan", "RoundsResult", "measure_rounds")

ARMS = ("unprobed", "probed", "tcpdump")
# Tracepoints with an empty program beside ours while run time is counted.
_EMPTY_ON = ("sched_switch", "tcp_retransmit_skb")
_POLL_S = 0.02
# Where no round is given up to a change of arm, one counts if the arm was in force for all but this
# share of it: a change takes 0.05 s of a round of seconds. Some take longer, so plan for one in so many.
_NEGLIGIBLE, _SPOILED_EVERY = 0.03, 8
_SNAPLEN_BYTES = 128  # headers: what one would capture to explain latency


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many rounds go where."""

    experiment: str
    warm_up: int
    cycles: int
    tcpdump_every: int  # cycles
    block: int  # counted rounds of a block
    lost: int  # rounds that a change of arm spoils; 0: rounds are long against a change
    cost: int  # rounds of the last block, with BPF statistics

    @property
    def rounds(self) -> int:
        """Rounds of the job."""
        blocks = len(self.order(0))
        spoiled = blocks * self.lost or blocks // _SPOILED_EVERY
        return self.warm_up + blocks * self.block + spoiled + 1 + self.cost

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
    retransmitted: dict[tuple[int, str], int] = field(default_factory=dict)  # in these rounds
    account: Account | None = None
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    empty: list[ProgramCost] = field(default_factory=list)  # ran beside it
    observed_s: float = 0.0
    ready_s: list[float] = field(default_factory=list)
    lost_events: int = 0  # in the probed blocks

    def pairs(self, arm: str) -> list[tuple[float, float]]:
        """Mean round time under ``arm``, and in the unprobed block of the same cycle; seconds."""
        pairs = []
        for cycle in range(self.plan.cycles):
            mine, bare = self.blocks.get((cycle, arm)), self.blocks.get((cycle, "unprobed"))
            if mine and bare:
                pairs.append((statistics.fmean(mine), statistics.fmean(bare)))
        return pairs

    def sent_again(self, arm: str) -> float:
        """Segments that the pods' kernels have sent again, a counted round."""
        rounds = len(self.rounds_of(arm))
        return sum(n for (_, name), n in self.retransmitted.items() if name == arm) / max(1, rounds)

    def rounds_of(self, arm: str) -> list[float]:
        """Every counted round of an arm, in seconds."""
        return [s for (_, name), seconds in self.blocks.items() if name == arm for s in seconds]


class _Observer(NodeAgent):
    """Keeps what it sees, with an empty program on some of the hooks."""

    def __init__(self) -> None:
        super().__init__()
        self._active = contextlib.ExitStack()
        self.empty: list[ProgramCost] = []

    def add_empty(self, pod: Pod) -> None:
        """After `start`, so that ours run first."""
        programs = empty_programs(pod.netns, pod.interface, _EMPTY_ON)
        self.empty = self._active.enter_context(programs)

    def stop(self) -> Account:
        account = super().stop()
        assert self._kernel is not None
        read_empty(self._kernel, self.empty)
        return account

    def close(self) -> None:
        self._active.close()
        super().close()


class _Arms:
    """An `Interference` that changes arms at the ends of rounds."""

    def __init__(self, plan: Plan, result: RoundsResult, seed: int, advance: Callable[[int], None]) -> None:
        self.plan, self.result, self._advance = plan, result, advance
        self.error: str | None = None
        self._order = plan.order(seed)
        self._kernel = KernelProbes()
        self._over = threading.Event()
        self._active = contextlib.ExitStack()
        self._observer: _Observer | None = None

    def prepare(self, runtime: Runtime) -> None:
        """See `Interference`."""

    @contextlib.contextmanager
    def during(self, runtime: Runtime) -> Iterator[None]:
        self._runtime = runtime
        self._pods = [runtime.server, *runtime.clients]
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
        since_ns, counted, order, before = 0, 0, iter(self._order), 0
        for number, start_ns, end_ns in self._rounds():
            self._advance(1)
            again = sum(tcp_counters(pod.netns)["RetransSegs"] for pod in self._pods)
            spared_ns = 0 if plan.lost else int(_NEGLIGIBLE * (end_ns - start_ns))
            if current is not None and start_ns >= since_ns - spared_ns and current[1] != "cost":
                self.result.blocks.setdefault(current, []).append((end_ns - start_ns) / 1e9)
                self.result.retransmitted[current] = (
                    self.result.retransmitted.get(current, 0) + again - before
                )
                counted += 1
            before = again
            if number >= plan.rounds:
                break
            if number < plan.warm_up or (current is not None and current[1] == "cost"):
                continue
            following: tuple[int, str] | None = None
            if number >= plan.rounds - plan.cost - 1:
                following = (plan.cycles, "cost")
            elif current is None or counted >= plan.block:
                following = next(order, (plan.cycles, "cost"))
            if following is not None:
                self._enter(following[1])
                current, counted, since_ns = following, 0, time.monotonic_ns()
        if self._observer is not None and current is not None and current[1] == "cost":
            self.result.observed_s = (time.monotonic_ns() - since_ns) / 1e9
            self.result.account = self._observer.stop()
            self.result.tables = self._observer.collector.tables() if self._observer.collector else {}
            self.result.empty = self._observer.empty

    def _rounds(self) -> Iterator[tuple[int, int, int]]:
        """(round, start, end in CLOCK_MONOTONIC ns) as they end."""
        server = self._runtime.server
        log = GrowingLog(self._runtime.source.log(server, self._runtime.applications[server.name]))
        starts: dict[int, int] = {}
        while True:
            events = log.fresh()
            for event in events:
                if event["event"] == "round_start":
                    starts[event["round"]] = event["time_monotonic_ns"]
                elif event["event"] == "round_end":
                    yield event["round"], starts[event["round"]], event["time_monotonic_ns"]
            if not events and self._over.wait(_POLL_S):
                return

    def _enter(self, arm: str) -> None:
        self._active.close()
        self._observer = None
        if arm == "tcpdump":
            self._active.enter_context(_captured(self._pods))
        elif arm == "probed":
            started_s = time.monotonic()
            self._active.enter_context(self._probed())
            self.result.ready_s.append(time.monotonic() - started_s)
        elif arm == "cost":
            observer = _Observer()
            self._active.enter_context(observer)
            observer.prepare()
            for pod in self._pods:
                observer.add_pod(pod)
            observer.start()
            observer.add_empty(self._pods[0])
            observer.watch(self._runtime.source.processes(self._pods))
            self._observer = observer

    @contextlib.contextmanager
    def _probed(self) -> Iterator[None]:
        """What the agent does, with programs that are loaded already."""
        kernel, node = self._kernel, inode(self._runtime.server.node_netns)
        collector = None
        try:
            for pod in self._pods:
                kernel.trace_netns(pod.netns_inode)
            kernel.trace_netns(node, node=True)
            for pid, (_, container) in self._runtime.source.processes(self._pods).items():
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
    captures = []
    with scratch() as directory:
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


def measure_rounds(plan: Plan, seed: int, advance: Callable[[int], None]) -> RoundsResult:
    """Run one experiment through all arms.

    :param advance: is called with 1 after each round.
    :raises RuntimeError: the arms could not be changed.
    """
    experiment = parse_experiment(plan.experiment, profile_names())
    result = RoundsResult(plan)
    arms = _Arms(plan, result, seed, advance)
    with scratch() as directory:
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
        spec = replace(
            spec_of(request, offloads=not load_profile(experiment.profile).per_packet), probes=False
        )
        target = create_run_dir(directory / "run")
        run(spec, target, QuietProgress(), interference=arms)
    if arms.error:
        print(arms.error, file=sys.stderr)
        raise RuntimeError(f"{plan.experiment}: {arms.error.splitlines()[-1]}")
    return result
