"""`make bench`: the observer's own cost as a table and as JSON. Needs root; about 45 minutes.

`BENCH_QUICK=1` takes about 7; `--cycles` and `--only` choose more finely. Goals are shown
beside the figures, and nothing fails because of them: intervals of a few rounds on a busy
machine say little, and say so by their width. The JSON is written after every part, whole each time;
Ctrl-C ends the part at work, takes away what it has set up, and leaves the file with the parts before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.attached import DEPLOYMENTS, measure_attached, rows_of
from bench.clients import measure_sizes
from bench.delayline import measure_delay_line
from bench.duet import measure_duet
from bench.emissions import emissions
from bench.machine import machine_facts
from bench.policy import measure as measure_policy
from bench.profile_apply import measure_apply
from bench.profile_change import measure_changes
from bench.programs import measure_cold, measure_programs, split_costs
from bench.rounds import ARMS, Plan, RoundsResult, measure_rounds
from bench.spread import mean_ratio, paired_ratio
from bench.startup import startup_s
from bench.throughput import measure_throughput
from bench.traffic import measure_connections
from tests.kernel.pods import two_pods
from ztprobe.errors import ZtprobeError
from ztprobe.printable import printable_lines
from ztprobe.process.interrupts import Interrupted, catching
from ztprobe.progress import Progress, open_progress
from ztprobe.rundir.store import write_atomically

_FULL = (
    Plan(experiment="net0-sec0", warm_up=5, cycles=24, tcpdump_every=4, block=4, lost=1, cost=15),
    Plan(experiment="net0-sec3", warm_up=5, cycles=28, tcpdump_every=4, block=4, lost=1, cost=15),
    Plan(experiment="net2-sec3", warm_up=22, cycles=24, tcpdump_every=4, block=2, lost=0, cost=5),
)
_QUICK = (
    Plan(experiment="net0-sec0", warm_up=3, cycles=6, tcpdump_every=2, block=4, lost=1, cost=6),
    Plan(experiment="net0-sec3", warm_up=3, cycles=6, tcpdump_every=2, block=4, lost=1, cost=6),
    Plan(experiment="net2-sec3", warm_up=3, cycles=1, tcpdump_every=1, block=1, lost=0, cost=2),
)
_CONNECTIONS_PER_S = 11_000.0  # the goal of 10,000, and a little
_PARTS = (
    "startup",
    "programs",
    "connections",
    "throughput",
    "profile",
    "delay-line",
    "policy",
    "clients",
    "attached",
    "flower",
    "duet",
    *(plan.experiment for plan in _FULL),
)
_QUIET_NS, _LOUD_NS = 150, 300  # goals: a run that emits nothing, a run that does


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    value: str
    goal: str = ""


def _startup(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    with two_pods() as pods:
        first = [startup_s(pods, first=True) for _ in range(3 if quick else 7)]
        trials = [startup_s(pods) for _ in range(3 if quick else 7)]
    rows = [
        Row("start-up to all probes attached", f"{_spread(trials)} s", "<= 0.85 s"),
        Row("  the first time since boot, with compiling", f"{_spread(first)} s", "<= 2 s"),
    ]
    return rows, {"startup_s": trials, "first_startup_s": first}


def _programs(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    with two_pods() as pods:
        observed = measure_programs(pods, 2.0 if quick else 6.0)
    rows: list[Row] = []
    record: dict[str, Any] = {}
    for program, runs in observed.items():
        without, with_one = split_costs(runs)
        record[program] = {"without_ns": without, "with_ns": with_one, "workloads": [asdict(r) for r in runs]}
        if program.startswith("an empty"):
            if without is not None:
                text = f"{without:.0f} ns: the meter's own part of each run below"
                rows.append(Row(f"a run of {program}", text))
            continue
        costs = [f"{ns:.0f} ns" if ns is not None else "(none such)" for ns in (without, with_one)]
        text = f"{costs[0]} without an event, {costs[1]} with one"
        goal = f"<= {_QUIET_NS}, <= {_LOUD_NS} ns"
        rows.append(Row(f"a run of {program.removeprefix('raw_')}", text, goal))
    rows.sort(key=lambda row: bool(row.goal))  # the empty ones first
    with two_pods() as pods:
        cold = measure_cold(pods, 1.0 if quick else 2.0)
    for size, by_program in cold.items():
        means = {name: run.time_ns / max(1, run.runs) for name, run in by_program.items()}
        ours = means.pop("raw_sched_switch")
        text = f"{ours:.0f} ns; an empty one {min(means.values()):.0f} ns"
        rows.append(Row(f"sched_switch, {size >> 20} MB touched in between", text))
    record["cold"] = {
        size: {name: asdict(run) for name, run in by_program.items()} for size, by_program in cold.items()
    }
    return rows, record


def _connections(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    with two_pods() as pods:
        found = measure_connections(pods, 3.0 if quick else 10.0, _CONNECTIONS_PER_S)
    lost = sum(found.loss.values())
    rows = [
        Row(
            "short connections", f"{found.rate:,.0f} a second, {found.opened:,} in all", ">= 10,000 a second"
        ),
        Row(
            "events of theirs",
            f"{found.events:,}, lost {lost}, connections misseen {found.missing}",
            "0 lost",
        ),
    ]
    return rows, asdict(found) | {"rate": found.rate, "missing": found.missing}


def _throughput(quick: bool, seed: int, progress: Progress) -> tuple[list[Row], dict[str, Any]]:
    cycles = 12 if quick else 60
    with two_pods() as pods, progress.bar("  throughput", cycles) as advance:
        found = measure_throughput(pods, cycles, 0.25, seed, advance)
    probed, bare = found.gbits(True), found.gbits(False)
    counted = [block for blocks in found.cycles() for block in blocks]
    packet_bytes = sum(b.received_bytes for b in counted) / sum(b.packets for b in counted)
    again = sum(block.retransmitted for block in counted)
    text = f"cycles left out: {found.left_out} of {cycles}; segments sent again: {again}"
    rows = [
        Row(f"{found.tool} over a veth, on one CPU", f"{_spread(probed)} against {_spread(bare)} Gbit/s"),
        Row(f"  mean packet {packet_bytes:,.0f} bytes", text),
        Row("  probed over unprobed", str(found.ratio), ">= 0.97"),
        Row("  the same, by CPU time", str(found.cpu_ratio)),
    ]
    ratios = {"ratio": found.ratio, "cpu_ratio": found.cpu_ratio}
    return rows, asdict(found) | {name: asdict(ratio) if ratio else None for name, ratio in ratios.items()}


def _profile(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    count = 40 if quick else 200
    applied, changed = measure_apply(count), measure_changes(count)
    tc = f"{applied['tc_processes_s']:.3f} s, {applied['times_as_fast']} times as long"
    in_place = f"{changed['pod_ms']:.3f} ms a pod (tc: {changed['tc_pod_ms']:.3f} ms)"
    line = f"{changed['delay_line_ms']:.3f} ms for {changed['delay_line_pods']} pods at once"
    rows = [
        Row(f"{applied['backend']} on {count} pods", f"{applied['ztprobe_s']:.3f} s", "<= 1 s for 200"),
        Row("  as many tc processes", tc, ">= 2 times"),
        Row("  the whole command", f"{applied['command_s']:.2f} s"),
        Row("changing it in place", in_place, "<= 2 ms a pod"),
        Row("  a delay line", line),
    ]
    return rows, {"apply": applied, "change": changed}


def _delay_line(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    found = measure_delay_line(1 if quick else 3, 2.0 if quick else 4.0)
    moved = f"{_spread(found.delayed_gbit)} Gbit/s (undelayed {_spread(found.bare_gbit)})"
    rows = [Row(f"delay line, 10 ms, {found.flows} connections", moved, ">= 2 Gbit/s")]
    for when, late_ms, goal in (
        ("idle", found.idle_late_ms, "<= 0.2 ms"),
        ("beside them", found.loaded_late_ms, ""),
    ):
        p99_ms = sorted(late_ms)[int(0.99 * len(late_ms))]
        text = f"{statistics.median(late_ms):.3f} ms in the median, {p99_ms:.3f} ms p99"
        rows.append(Row(f"  late by, {when}", text, goal))
    return rows, asdict(found)


def _policy(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    found = measure_policy(500_000 if quick else 2_000_000, 20 if quick else 100)
    rows = [
        Row(
            f"{found['policies']:,} policies, {found['pods']:,} pods, indexed",
            f"{found['index_s']:.2f} s (read from documents {found['read_s']:.2f} s)",
            "<= 2 s",
        ),
        Row(
            "  verdicts, first time",
            f"{found['cold_per_s'] / 1e6:.1f} million a second",
            ">= 1 million a second",
        ),
        Row(
            "  verdicts, again", f"{found['warm_per_s'] / 1e6:.1f} million a second", ">= 1 million a second"
        ),
    ]
    for kind in ("policy", "pod"):
        text = f"{found[f'{kind}_ms_median']:.2f} ms, {found[f'{kind}_ms_p99']:.2f} ms p99"
        rows.append(Row(f"  a changed {kind}, and a verdict", text, "<= 5 ms"))
    return rows, found


def _duet(options: argparse.Namespace, progress: Progress) -> tuple[list[Row], dict[str, Any]]:
    pairs = options.cycles or (4 if options.quick else 16)
    rows, record = [], {}
    for disturbed in (False, True):
        where = "disturbed" if disturbed else "as it is"
        with progress.bar(f"  duet, {where}", 2 * pairs) as advance:
            rounds = 6 if options.quick else 11
            found = measure_duet(pairs, rounds, options.seed, advance, disturbed=disturbed)
        rows += [Row(*words) for words in found.words()]
        record[where] = asdict(found)
    return rows, record


def _attached(part: str, options: argparse.Namespace, progress: Progress) -> tuple[list[Row], dict[str, Any]]:
    cycles = options.cycles or (6 if options.quick else 20)
    with progress.bar(f"  {part}", cycles) as advance:
        found = measure_attached(part, cycles, options.seed, advance)
    return [Row(*words) for words in rows_of(part, found)], asdict(found)


def _rounds(plan: Plan, seed: int, progress: Progress) -> tuple[list[Row], dict[str, Any]]:
    with progress.bar(f"  {plan.experiment}", plan.rounds) as advance:
        found = measure_rounds(plan, seed, advance)
    rows = []
    for arm in ARMS:
        seconds = found.rounds_of(arm)
        if seconds:
            text = f"{_spread(seconds)} s, {len(seconds)} rounds"
            if again := found.sent_again(arm):
                text += f", {again:.1f} segments sent again in each"
            rows.append(Row(f"{plan.experiment}: round, {arm}", text))
    ratios = {arm: paired_ratio(found.pairs(arm)) for arm in ARMS[1:]}
    means = {arm: mean_ratio(found.pairs(arm)) for arm in ARMS[1:]}
    goal = "<= 1.01; upper bound <= 1.03" if plan.experiment.startswith("net0") else "<= 1.01"
    for arm, ratio in ratios.items():
        rows.append(Row(f"  {arm} over unprobed", str(ratio or "no pairs"), goal if arm == "probed" else ""))
        rows.append(Row("    the same, by the mean", str(means[arm] or "no pairs")))
    record: dict[str, Any] = {
        "plan": asdict(plan),
        "blocks": [
            {"cycle": at[0], "arm": at[1], "round_s": s, "retransmitted": found.retransmitted[at]}
            for at, s in found.blocks.items()
        ],
        "ratios": {arm: asdict(ratio) if ratio else None for arm, ratio in ratios.items()},
        "mean_ratios": {arm: asdict(ratio) if ratio else None for arm, ratio in means.items()},
        "attach_while_running_s": found.ready_s,
        "lost_events": found.lost_events,
    }
    if found.account is not None:
        cost_rows, cost = _cost(found)
        rows += cost_rows
        record["cost"] = cost
    return rows, record


def _cost(found: RoundsResult) -> tuple[list[Row], dict[str, Any]]:
    account = found.account
    assert account is not None
    cores = os.cpu_count() or 1
    programs_ns = sum(probe["run_time_ns"] for probe in account.probes)
    total_ns = programs_ns + account.reader_cpu_ns
    share = total_ns / (found.observed_s * 1e9 * cores)
    rows = [
        Row(
            "  programs and reader, of wall time x cores",
            f"{share:.2%} ({programs_ns / 1e6:.0f} + {account.reader_cpu_ns / 1e6:.0f} ms"
            f" in {found.observed_s:.1f} s)",
            "<= 1 %",
        )
    ]
    events = emissions(found.tables)
    for probe in account.probes:
        if probe["run_count"]:
            mean_ns = probe["run_time_ns"] / probe["run_count"]
            name = probe["program"].removeprefix("raw_")
            text = (
                f"{probe['run_count']:>9,} runs, {mean_ns:5.0f} ns each, {events[probe['program']]:,} events"
            )
            rows.append(Row(f"    {name}", text))
    for cost in found.empty:
        if cost.run_count:
            text = f"{cost.run_count:>9,} runs, {cost.run_time_ns / cost.run_count:5.0f} ns each"
            rows.append(Row(f"    {cost.program}", f"{text}, not ours: the meter's own part"))
    rows.append(Row("    events lost", str(sum(account.loss.values())), "0"))
    return rows, {
        "share": share,
        "observed_s": found.observed_s,
        "programs_ns": programs_ns,
        "reader_cpu_ns": account.reader_cpu_ns,
        "events": account.events_seen,
        "events_by_program": events,
        "loss": account.loss,
        "probes": account.probes,
        "empty_programs": [cost.as_dict() for cost in found.empty],
    }


def _spread(values: Any) -> str:
    numbers = list(values)
    return f"{statistics.median(numbers):.3g} ({min(numbers):.3g} to {max(numbers):.3g})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("BENCH_QUICK")))
    parser.add_argument("--only", action="append", choices=_PARTS, help="this part alone; may be repeated")
    parser.add_argument("--cycles", type=int, help="cycles of blocks per experiment")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the arms")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench.json"), help="where the figures go as JSON"
    )
    return parser.parse_args()


_ALONE = {
    "startup": _startup,
    "programs": _programs,
    "profile": _profile,
    "delay-line": _delay_line,
    "policy": _policy,
    "connections": _connections,
}


def _measure(part: str, options: argparse.Namespace, progress: Progress) -> tuple[list[Row], dict[str, Any]]:
    quick = options.quick
    if part in _ALONE:
        return _ALONE[part](quick)
    if part in DEPLOYMENTS:
        return _attached(part, options, progress)
    if part == "clients":
        words, record = measure_sizes(quick, progress)
        return [Row(*each) for each in words], record
    if part == "duet":
        return _duet(options, progress)
    if part == "throughput":
        return _throughput(quick, options.seed, progress)
    (plan,) = (plan for plan in (_QUICK if quick else _FULL) if plan.experiment == part)
    if options.cycles:
        plan = replace(plan, cycles=options.cycles)
    return _rounds(plan, options.seed, progress)


def main() -> int:
    """Measure and print. :returns: 0, 1 when something could not be measured, 128 + N after signal N."""
    options = _arguments()
    if os.geteuid() != 0:
        print("bench: probes and network namespaces need root", file=sys.stderr)
        return 1
    parts = options.only or _PARTS
    record: dict[str, Any] = {"machine": machine_facts(), "quick": options.quick, "seed": options.seed}
    machine = record["machine"]
    print(
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']},"
        f" load {machine['load_before']:.1f}",
        flush=True,
    )
    failed = False
    began_s = time.monotonic()
    try:
        with catching(_say), open_progress() as progress:
            for number, part in enumerate(parts, 1):
                started_s = time.monotonic()
                _say(f"{part}, {number} of {len(parts)} ({started_s - began_s:.0f} s so far)")
                try:
                    rows, found = _measure(part, options, progress)
                    for row in rows:
                        print(f"{row.what:<46} {row.value:<58} {row.goal}".rstrip(), flush=True)
                    record[part] = found | {"took_s": time.monotonic() - started_s}
                    record["took_s"] = time.monotonic() - began_s
                    write_atomically(options.out, (json.dumps(record, indent=1) + "\n").encode())
                except (ZtprobeError, RuntimeError, OSError, subprocess.SubprocessError) as error:
                    _say(f"{part}: {error}")
                    failed = True
    except Interrupted as interrupt:
        _say(f"interrupted ({interrupt}) in {part}; everything has been cleaned up")
        return interrupt.exit_code
    if "took_s" in record:
        print(f"figures: {options.out} ({record['took_s']:.0f} s)")
    return int(failed)


def _say(text: str) -> None:
    print(f"bench: {printable_lines(text)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
