"""What attaching costs a deployment that runs already: blocks of its rounds with a trace, and without.

The deployment goes on while traces come and go; every cycle holds one block of each arm, in an order of its
own. Only rounds that lie in a block as a whole count, and those of a trace only once it says that its probes
are attached. When rounds were is told by the deployment's own clock. Two are measured: a server and two
clients of nobody's framework (gRPC, no polling, which would quantise rounds), and unmodified Flower.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from bench.spread import paired_ratio
from tests.e2e.command import Trace
from tests.e2e.direct_deployments import deployment as direct_deployment
from tests.e2e.direct_deployments import loopback
from tests.frameworks.flower import Options, clock_of
from tests.frameworks.flower import deployment as flower_deployment
from ztprobe.rundir.store import load_run
from ztprobe.rundir.temporary import scratch

__all__ = ("DEPLOYMENTS", "AttachedResult", "Running", "measure_attached", "rows_of")

_ENOUGH_ROUNDS = 1_000_000  # it is ended before
_LIMIT_S = 120.0


@dataclass(frozen=True)
class Running:
    """A deployment whose rounds go on."""

    targets: Sequence[str]
    options: Sequence[str]  # of the trace besides
    times_ns: Callable[[], dict[tuple[str, int], int]]  # ("round_start" or "round_end", number) -> when
    block_rounds: int
    warm_up_rounds: int


@dataclass
class AttachedResult:
    """Blocks of rounds."""

    pairs: list[tuple[float, float]] = field(default_factory=list)  # mean round: attached, not attached
    rounds: dict[str, list[float]] = field(default_factory=lambda: {"attached": [], "alone": []})
    attach_s: list[float] = field(default_factory=list)  # from the command to attached probes
    machine_shares: list[float] = field(default_factory=list)  # all of ztprobe, of wall time x cores
    program_shares: list[float] = field(default_factory=list)  # its programs on all CPUs, of wall time
    lost: int = 0


@contextlib.contextmanager
def _direct(directory: Path) -> Iterator[Running]:
    chosen = {"transport": "grpc", "rounds": _ENOUGH_ROUNDS, "train_s": 0.2, "pause_s": 0.05}
    with loopback() as where, direct_deployment(directory, where, **chosen) as made:
        log = made.directory / "server.jsonl"

        def times_ns() -> dict[tuple[str, int], int]:
            events = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
            return {
                (one["event"], one["round"]): one["time_monotonic_ns"] for one in events if "round" in one
            }

        (made.directory / "go").touch()
        yield Running(made.targets, ("--events-from", str(log)), times_ns, 8, 8)


@contextlib.contextmanager
def _flower(directory: Path) -> Iterator[Running]:
    with flower_deployment(directory, Options(version="1.42", clients=2)) as made:

        def times_ns() -> dict[tuple[str, int], int]:
            clock = [one for one in clock_of(made.clock_directory) if "round" in one]
            return {(one["event"], one["round"]): one["time_monotonic_ns"] for one in clock}

        job = made.start_run(num_server_rounds=_ENOUGH_ROUNDS, examples=96)
        try:
            yield Running(made.targets, ("--events-from", "none"), times_ns, 1, 1)
        finally:
            job.terminate()
            job.wait(timeout=10)


# Part of the bench -> a deployment in that directory.
DEPLOYMENTS: dict[str, Callable[[Path], AbstractContextManager[Running]]] = {
    "attached": _direct,
    "flower": _flower,
}
_WORDS = {"attached": "gRPC of others", "flower": "Flower 1.42"}


def measure_attached(part: str, cycles: int, seed: int, advance: Callable[[int], None]) -> AttachedResult:
    """Alternate beside one of `DEPLOYMENTS`.

    :raises FileNotFoundError: the framework is not installed.
    :raises RuntimeError: a trace failed, or no round ended in time.
    """
    draw, found = random.Random(seed), AttachedResult()
    with scratch() as directory, DEPLOYMENTS[part](directory / "deployment") as running:
        _wait_for_round(running, running.warm_up_rounds)
        for cycle in range(cycles):
            means = {}
            for arm in draw.sample(("attached", "alone"), 2):
                block = (
                    _attached_block(running, directory / f"run{cycle}", found)
                    if arm == "attached"
                    else _block(running)
                )
                found.rounds[arm] += block
                means[arm] = statistics.fmean(block)
            found.pairs.append((means["attached"], means["alone"]))
            advance(1)
    return found


def _ended(running: Running) -> int:
    return max((number for event, number in running.times_ns() if event == "round_end"), default=0)


def _wait_for_round(running: Running, number: int) -> None:
    give_up_s = time.monotonic() + _LIMIT_S
    while _ended(running) < number:
        if time.monotonic() > give_up_s:
            raise RuntimeError(f"round {number} of the deployment did not end within {_LIMIT_S:.0f} s")
        time.sleep(0.05)


def _block(running: Running) -> list[float]:
    """So many rounds that begin from now on, in seconds."""
    first = _ended(running) + 2
    _wait_for_round(running, first + running.block_rounds - 1)
    times_ns = running.times_ns()
    numbers = range(first, first + running.block_rounds)
    return [(times_ns["round_end", n] - times_ns["round_start", n]) / 1e9 for n in numbers]


def _attached_block(running: Running, out: Path, found: AttachedResult) -> list[float]:
    began_s = time.monotonic()
    options = (*running.options, "--for", "10m")
    trace = Trace.start(out, "--attach", *running.targets, *options, watched=False)
    try:
        trace.until(lambda trace: trace.said("probes"))
        found.attach_s.append(time.monotonic() - began_s)
        block = _block(running)
        outcome = trace.interrupt(signal.SIGINT)
    finally:
        trace.end()
    if not (out / "run.json").exists():
        raise RuntimeError(f"a trace left nothing: {outcome.stderr.splitlines()[-1:]}")
    meta = load_run(out).meta
    found.lost += sum(meta["loss"].values())
    found.machine_shares.append(meta["agent_cpu_ns"] / meta["wall_ns"] / (os.cpu_count() or 1))
    found.program_shares.append(sum(one["run_time_ns"] for one in meta["probes"]) / meta["wall_ns"])
    return block


def rows_of(part: str, found: AttachedResult) -> list[tuple[str, ...]]:
    """For the bench's table: what, the figure, the goal."""
    attached, alone = (statistics.median(found.rounds[arm]) for arm in ("attached", "alone"))
    share, attach_s = statistics.median(found.machine_shares), statistics.median(found.attach_s)
    # Polls quantise a round: what a trace costs may make it longer by a whole poll, or by nothing.
    goal = "<= 1.01" if part == "attached" else ""
    return [
        (f"attached to {_WORDS[part]}: a round", f"{attached:.3f} s, {alone:.3f} s without"),
        ("  attached over alone", str(paired_ratio(found.pairs)), goal),
        ("  all of ztprobe, of wall time x cores", f"{share:.2%}", "<= 1 %"),
        (
            "  its programs on all CPUs, of a round",
            f"{statistics.median(found.program_shares):.2%}",
            "<= 1 % on its critical path",
        ),
        ("  from the command to attached probes", f"{attach_s:.2f} s", "<= 2 s"),
        ("  events lost", str(found.lost), "0"),
    ]
