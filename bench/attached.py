"""What attaching costs a deployment that runs already: blocks of its rounds with a trace, and without.

A server and two clients of nobody's framework (gRPC, no polling, which would quantise rounds) go on while
traces come and go; every cycle holds one block of each arm, in an order of its own. Only rounds that lie in a
block as a whole count, and those of a trace only once it says that its probes are attached. The deployment's
own log says when its rounds were.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.spread import paired_ratio
from tests.e2e.command import Trace
from tests.e2e.direct_deployments import Deployed, deployment, loopback
from ztprobe.rundir.temporary import scratch

__all__ = ("AttachedResult", "measure_attached", "rows_of")

_WARM_UP_ROUNDS = 8
_ENOUGH_ROUNDS = 1_000_000  # it is ended before
_LIMIT_S = 60.0


@dataclass
class AttachedResult:
    """Blocks of rounds."""

    pairs: list[tuple[float, float]] = field(default_factory=list)  # mean round: attached, not attached
    rounds: dict[str, list[float]] = field(default_factory=lambda: {"attached": [], "alone": []})
    attach_s: list[float] = field(default_factory=list)  # from the command to attached probes
    machine_shares: list[float] = field(default_factory=list)  # the agent, of wall time x cores
    lost: int = 0


def measure_attached(
    cycles: int, block_rounds: int, seed: int, advance: Callable[[int], None]
) -> AttachedResult:
    """Alternate.

    :raises RuntimeError: a trace failed, or no round ended in time.
    """
    draw, found = random.Random(seed), AttachedResult()
    chosen = {"transport": "grpc", "rounds": _ENOUGH_ROUNDS, "train_s": 0.2, "pause_s": 0.05}
    with (
        scratch() as directory,
        loopback() as where,
        deployment(directory / "deployment", where, **chosen) as made,
    ):
        (made.directory / "go").touch()
        _wait_for_round(made, _WARM_UP_ROUNDS)
        for cycle in range(cycles):
            means = {}
            for arm in draw.sample(("attached", "alone"), 2):
                block = (
                    _attached_block(made, directory / f"run{cycle}", block_rounds, found)
                    if arm == "attached"
                    else _block(made, block_rounds)
                )
                found.rounds[arm] += block
                means[arm] = statistics.fmean(block)
            found.pairs.append((means["attached"], means["alone"]))
            advance(1)
    return found


def _events(made: Deployed) -> list[dict[str, Any]]:
    lines = (made.directory / "server.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _ended(made: Deployed) -> int:
    return max((one["round"] for one in _events(made) if one["event"] == "round_end"), default=0)


def _wait_for_round(made: Deployed, number: int) -> None:
    give_up_s = time.monotonic() + _LIMIT_S
    while _ended(made) < number:
        if time.monotonic() > give_up_s:
            raise RuntimeError(f"round {number} of the deployment did not end within {_LIMIT_S:.0f} s")
        time.sleep(0.05)


def _block(made: Deployed, rounds: int) -> list[float]:
    """So many rounds that begin from now on, in seconds."""
    first = _ended(made) + 2
    _wait_for_round(made, first + rounds - 1)
    times = {(one["event"], one.get("round")): one["time_monotonic_ns"] for one in _events(made)}
    numbers = range(first, first + rounds)
    return [(times["round_end", n] - times["round_start", n]) / 1e9 for n in numbers]


def _attached_block(made: Deployed, out: Path, rounds: int, found: AttachedResult) -> list[float]:
    log = made.directory / "server.jsonl"
    began_s = time.monotonic()
    more = ("--events-from", str(log), "--for", "10m")
    trace = Trace.start(out, "--attach", *made.targets, *more, watched=False)
    try:
        trace.until(lambda trace: trace.said("probes"))
        found.attach_s.append(time.monotonic() - began_s)
        block = _block(made, rounds)
        outcome = trace.interrupt(signal.SIGINT)
    finally:
        trace.end()
    if not (out / "run.json").exists():
        raise RuntimeError(f"a trace left nothing: {outcome.stderr.splitlines()[-1:]}")
    meta = json.loads((out / "run.json").read_text())
    found.lost += sum(meta["loss"].values())
    found.machine_shares.append(meta["agent_cpu_ns"] / meta["wall_ns"] / (os.cpu_count() or 1))
    return block


def rows_of(found: AttachedResult) -> list[tuple[str, ...]]:
    """For the bench's table: what, the figure, the goal."""
    attached, alone = (statistics.median(found.rounds[arm]) for arm in ("attached", "alone"))
    share, attach_s = statistics.median(found.machine_shares), statistics.median(found.attach_s)
    return [
        ("attached to gRPC of others: a round", f"{attached:.3f} s, {alone:.3f} s without"),
        ("  attached over alone", str(paired_ratio(found.pairs)), "<= 1.01"),
        ("  the agent, of wall time x cores", f"{share:.2%}", "<= 1 %"),
        ("  from the command to attached probes", f"{attach_s:.2f} s", "<= 2 s"),
        ("  events lost", str(found.lost), "0"),
    ]
