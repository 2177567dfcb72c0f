"""Whether the machine was the deployment's own while its rounds ran, and what a difference then says.

Two runs of one deployment differ if somebody else uses the CPUs during one of them, and nothing in the
rounds themselves tells that from overhead. So each run's own record of the machine
(ztprobe/agent/machine_load.py) is summed over its counted rounds:

- *foreign CPU time*, of processes that are neither the deployment nor ztprobe, and *steal*, what the
  hypervisor took, each as a share of the CPU time that the machine has;
- *memory pressure*, wall time in which some task waited for memory.

Each is ignored below `QUIET_SHARE`. On a machine that is full, rounds are longer by just that share (their
work has so much less of the machine), on any other by less; it is the level that this project calls quiet.
At or above it the run is *contended*, and then no difference has an interval: how far contention shifts
a figure depends on which threads met on which CPU, and there is no factor for it with a source. What can be
said is how far it reaches. A thread waits no longer than others run, so of a component's time at most as
much is waiting as foreign CPU time (and steal) passed meanwhile, assumed even over a round. Where the
difference is within that, contention could explain it alone, and the component is named.

CPU waiting that the deployment causes itself is no contention but its cost on this machine: it stays a
sub-row of the ledger. A run without a record is neither quiet nor contended, and the report says so.

A run on several nodes is contended if any of them was. Its figures are those of the node that others used
most, which is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import drift
from analysis.ledger.model import COMPONENTS, SUB_ROWS, RoundLedger
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import Run

__all__ = (
    "QUIET_SHARE",
    "RunMachine",
    "judge",
    "machine_table",
    "machines_of",
    "of_round",
    "ran_outside_ns",
    "withhold",
)

QUIET_SHARE = 0.02
# Of a round's time, what the record has to cover to speak of it.
_RECORDED_SHARE = 0.9
# Components that are less of a round than this are not worth a name.
_WORTH_NAMING = 0.01

_REQUIRED = ("from_ns", "to_ns", "foreign_ns", "steal_ns")
_SHARES = ("foreign_share", "steal_share", "memory_stalled_share")
_OPTIONAL = ("cpu_stalled_ns", "memory_stalled_ns", "io_stalled_ns", "available_bytes", "frequency_khz")


def machine_table(run: Run) -> pd.DataFrame | None:
    """The run's record of its machine in the order of time; None: it has none (older runs).

    :raises RunDirError: it is not what was written.
    """
    table = run.events.get("machine")
    if table is None or table.empty:
        return None
    where = f"{run.path / 'events' / 'machine.parquet'}"
    for column in _REQUIRED:
        if column not in table:
            raise RunDirError(f"{where}: has no column {column}")
        if not pd.api.types.is_integer_dtype(table[column].dtype) or table[column].hasnans:
            raise RunDirError(f"{where}: {column} is no column of integers")
    recorded = run.meta.get("table_rows", {}).get("machine")
    if recorded is not None and recorded != len(table):
        raise RunDirError(
            f"{where}: holds {len(table)} rows, and the run wrote {recorded}; the file was changed"
        )
    table = table.sort_values("from_ns", kind="stable", ignore_index=True)
    if bool((table["to_ns"] <= table["from_ns"]).any()):
        raise RunDirError(f"{where}: a row ends before it begins")
    return table


class RunMachine(NamedTuple):
    """A machine that a run was on."""

    node: str  # empty: the run's only one
    cpus: int
    table: pd.DataFrame | None  # its record; None: there is none
    facts: Mapping[str, Any]  # run.json's machine_load, of this one


def machines_of(run: Run) -> list[RunMachine]:
    """Each with its record, the server's first. :raises RunDirError: see `machine_table`."""
    recorded = run.meta.get("machine_load", {})
    table, cores = machine_table(run), run.meta.get("cores")
    return [
        RunMachine(
            str(facts.get("node", "")),
            max(1, int(facts.get("cpus") or cores or 1)),
            None if table is None else _of_node(table, facts.get("node", "")),
            recorded | facts,
        )
        for facts in recorded.get("nodes") or [recorded]
    ]


def _of_node(table: pd.DataFrame, node: str) -> pd.DataFrame:
    return table[table["node"] == node] if node and "node" in table else table


def of_round(machines: Sequence[RunMachine], one: RoundLedger) -> dict[str, Any] | None:
    """What else the machine did in one round, intervals cut at its ends; None: not recorded.

    Of several, the one that others used most, as ``node``.
    """
    found, span = [], (one.start_ns, one.start_ns + one.duration_ns)
    for machine in machines:
        if machine.table is not None and (sums := _during(machine.table, [span])) is not None:
            told = {
                "foreign_cpu_s": _seconds(sums["foreign_ns"]),
                "foreign_share": _share(sums["foreign_ns"], one.duration_ns * machine.cpus),
                "steal_s": _seconds(sums["steal_ns"]),
                "cpu_stalled_s": _seconds(sums["cpu_stalled_ns"]),
            }
            found.append(told | ({"node": machine.node} if machine.node else {}))
    return max(found, key=lambda told: told["foreign_share"] or 0.0, default=None)


def ran_outside_ns(table: pd.DataFrame, from_ns: int, to_ns: int, node: str = "") -> float | None:
    """CPU time of processes outside of the deployment in [from, to), ztprobe's among them, without the
    kernel's; None: not recorded.

    :param node: on which, where the run was on several.
    """
    sums = _during(_of_node(table, node), [(from_ns, to_ns)])
    return None if sums is None else sums["foreign_ns"] + (sums["ztprobe_ns"] or 0.0)


def judge(
    run: tuple[Run, Sequence[RoundLedger]],
    baseline: tuple[Run, Sequence[RoundLedger]] | None,
    overhead: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """report.json's ``contention``: each run's machine, whether it was quiet, and what that leaves open.

    :param run: with its counted rounds; so is the baseline.
    :param overhead: report.json's, with ``delta_s`` of every part; None: nothing is compared.
    """
    mine = _summary(*run)
    theirs = None if baseline is None else _summary(*baseline)
    there = [one for one in (mine, theirs) if one is not None]
    busy = any(one["busy"] for one in there)
    known = all(one["known"] for one in there)
    drifting = any(one["drift"] for one in there)
    reach_s: dict[tuple[str, ...], float] = {}
    explains: list[str] = []
    if busy and overhead is not None and baseline is not None and theirs is not None:
        reach_s = _reach(mine, run[1], theirs, baseline[1], overhead)
        explains = _explained(overhead, reach_s, run[1])
    return {
        "quiet_below_share": QUIET_SHARE,
        "known": known,
        # A run that was not recorded may have been anything.
        "contended": True if busy else False if known else None,
        "drifting": drifting,
        "run": mine,
        "baseline": theirs,
        "reach_s": {"/".join(part): _rounded(value) for part, value in reach_s.items() if len(part) == 1},
        "explains": explains,
        "withheld": _withheld(busy, mine, theirs, overhead),
    }


def withhold(overhead: Mapping[str, Any], judged: Mapping[str, Any], means: str) -> dict[str, Any]:
    """The same overhead without the intervals that contention or drift leaves nothing to say about.

    :param means: what an overhead is, in words, for where there is no interval to explain.
    """
    why = judged["withheld"]
    method = overhead["method"]
    if judged["contended"]:
        method = f"{means}. No interval: the machine was not quiet."
    elif why:
        method = f"{method} Withheld where rounds drifted by as much."

    def entry(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
        return dict(value) if name not in why else {**value, "ci95": None, "withheld": why[name]}

    return {
        **overhead,
        "method": method,
        **{name: entry(name, overhead[name]) for name in ("duration", "residual")},
        "components": {name: entry(name, value) for name, value in overhead["components"].items()},
        "sub_rows": {
            name: {row: entry(f"{name}/{row}", value) for row, value in rows.items()}
            for name, rows in overhead["sub_rows"].items()
        },
    }


def _summary(run: Run, rounds: Sequence[RoundLedger]) -> dict[str, Any]:
    """The machine in a run's counted rounds, per round where it is a time; of several the busiest."""
    machines = machines_of(run)
    figures = [_figures(one, rounds) for one in machines]
    # What is known of none is no busier than what is known.
    worst = max(range(len(machines)), key=lambda number: _most(figures[number]))
    machine, known = machines[worst], all(figures)
    found: dict[str, Any] = {
        "experiment": run.name,
        "known": known,
        "cpus": machine.cpus,
        **{
            key: machine.facts.get(key) for key in ("cpu_model", "source", "foreign_share_before", "waited_s")
        },
        **{key: machine.facts[key] for key in ("own_cpus",) if key in machine.facts},
        "drift": _drift(rounds),
        "busy": [],
        # of the critical path's threads, by the scheduler: what they wait for each other is in here
        "cpu_wait_s": _seconds(_cpu_wait_ns(rounds) / len(rounds)) if rounds else None,
        **(figures[worst] or {}),
    }
    if machine.node:
        found["node"] = machine.node
        found["nodes"] = [
            {"node": one.node, "known": told is not None, "cpus": one.cpus}
            | {name: None if told is None else told[name] for name in ("foreign_cpus", *_SHARES)}
            for one, told in zip(machines, figures, strict=True)
        ]
    return found


def _most(figures: Mapping[str, Any] | None) -> float:
    return -1.0 if figures is None else max(figures[name] or 0.0 for name in _SHARES)


def _figures(machine: RunMachine, rounds: Sequence[RoundLedger]) -> dict[str, Any] | None:
    """One machine's; None: not recorded."""
    spans = [(one.start_ns, one.start_ns + one.duration_ns) for one in rounds]
    wall_ns = sum(one.duration_ns for one in rounds)
    sums = _during(machine.table, spans) if machine.table is not None and wall_ns else None
    if sums is None:
        return None
    found = {
        "foreign_cpu_s": _seconds(sums["foreign_ns"] / len(rounds)),
        "foreign_cpus": _rounded(sums["foreign_ns"] / wall_ns),
        "foreign_share": _share(sums["foreign_ns"], wall_ns * machine.cpus),
        "steal_share": _share(sums["steal_ns"], wall_ns * machine.cpus),
        "cpu_stalled_share": _share(sums["cpu_stalled_ns"], wall_ns),
        "memory_stalled_share": _share(sums["memory_stalled_ns"], wall_ns),
        "io_stalled_share": _share(sums["io_stalled_ns"], wall_ns),
        "least_available_bytes": sums["least_available_bytes"],
        "frequency_mhz": sums["frequency_mhz"],
        "load_1m": sums["load_1m"],
    }
    return found | {"busy": [name for name in _SHARES if (found[name] or 0.0) >= QUIET_SHARE]}


def _during(table: pd.DataFrame, spans: Sequence[tuple[int, int]]) -> dict[str, Any] | None:
    """Sums over the spans, intervals counting by the part that lies inside; None: not recorded then."""
    begin, end = (table[name].to_numpy(dtype=np.int64) for name in ("from_ns", "to_ns"))
    inside = np.zeros(len(table))
    for low, high in spans:
        inside += np.clip(np.minimum(end, high) - np.maximum(begin, low), 0, None)
    if inside.sum() < _RECORDED_SHARE * sum(high - low for low, high in spans):
        return None
    part = inside / (end - begin)

    def total(name: str) -> float | None:
        if name not in table or table[name].isna().any():
            return None
        # Slightly below zero where counters were not read at the same instant; so a sum, then a bound.
        return max(0.0, float((table[name].to_numpy(dtype=np.float64) * part).sum()))

    seen = table[part > 0]
    frequency = seen["frequency_khz"].dropna() if "frequency_khz" in seen else seen["from_ns"][:0]
    return {
        **{name: total(name) for name in ("foreign_ns", "ztprobe_ns", "steal_ns", *_OPTIONAL[:3])},
        "least_available_bytes": int(seen["available_bytes"].min()) if "available_bytes" in seen else None,
        "frequency_mhz": _rounded(float(frequency.mean()) / 1e3) if len(frequency) else None,
        "load_1m": _rounded(float(seen["load_1m"].mean())) if "load_1m" in seen else None,
    }


def _cpu_wait_ns(rounds: Sequence[RoundLedger]) -> int:
    return sum(rows.get("cpu_wait", 0) for one in rounds for rows in one.sub_rows_ns.values())


def _drift(rounds: Sequence[RoundLedger]) -> dict[str, float]:
    """By how many seconds rounds got longer, and each component that makes up half of it or more."""
    durations_ns = [one.duration_ns for one in rounds]
    if not drift.drifts(durations_ns):
        return {}
    whole_ns = drift.change_ns(durations_ns)
    parts = {name: [one.components_ns[name] for one in rounds] for name in COMPONENTS}
    parts["residual"] = [one.residual_ns for one in rounds]
    changes_ns = {name: drift.change_ns(values_ns) for name, values_ns in parts.items()}
    return {
        name: _seconds(change_ns) or 0.0
        for name, change_ns in {"duration": whole_ns, **changes_ns}.items()
        if change_ns * whole_ns > 0 and abs(change_ns) >= abs(whole_ns) / 2
    }


def _mean_s(rounds: Sequence[RoundLedger], part: tuple[str, ...]) -> float:
    def value_ns(one: RoundLedger) -> int:
        if part == ("duration",):
            return one.duration_ns
        if part == ("residual",):
            return one.residual_ns
        return one.components_ns[part[0]]

    return sum(map(value_ns, rounds)) / len(rounds) / 1e9 if rounds else 0.0


def _reach(
    mine: Mapping[str, Any],
    rounds: Sequence[RoundLedger],
    theirs: Mapping[str, Any],
    baseline_rounds: Sequence[RoundLedger],
    overhead: Mapping[str, Any],
) -> dict[tuple[str, ...], float]:
    """Part -> seconds of its difference that waiting for others could be, in the difference's direction."""
    found: dict[tuple[str, ...], float] = {}
    for part in (("duration",), ("residual",), *((name,) for name in COMPONENTS)):
        longer = _entry(overhead, part)["delta_s"] >= 0
        summary, its_rounds = (mine, rounds) if longer else (theirs, baseline_rounds)
        held = min(1.0, max(map(_held_cpus, summary.get("nodes") or [summary])))
        if summary["busy"] == ["memory_stalled_share"]:
            held = summary["memory_stalled_share"]
        found[part] = held * _mean_s(its_rounds, part)
    return found


def _held_cpus(machine: Mapping[str, Any]) -> float:
    """CPUs that others held, on average; a thread waits for one of them at a time."""
    stolen = (machine.get("steal_share") or 0.0) * machine["cpus"]
    held: float = (machine.get("foreign_cpus") or 0.0) + stolen
    return held


def _explained(
    overhead: Mapping[str, Any], reach_s: Mapping[tuple[str, ...], float], rounds: Sequence[RoundLedger]
) -> list[str]:
    """Components whose whole difference contention could be, the largest first."""
    worth_s = _WORTH_NAMING * _mean_s(rounds, ("duration",))
    found = []
    for part, value_s in reach_s.items():
        entry = _entry(overhead, part)
        size_s = abs(entry["delta_s"])
        least_s = min(map(abs, entry["ci95"])) if entry["ci95"] else size_s
        if entry["ci95"] and entry["ci95"][0] <= 0 <= entry["ci95"][1]:
            least_s = 0.0
        if part != ("duration",) and size_s >= worth_s and least_s <= value_s:
            found.append((size_s, part[0]))
    return [name for _, name in sorted(found, key=lambda one: -one[0])]


def _withheld(
    busy: bool,
    mine: Mapping[str, Any],
    theirs: Mapping[str, Any] | None,
    overhead: Mapping[str, Any] | None,
) -> dict[str, str]:
    """Part ("component" or "component/sub-row") -> why its difference has no interval."""
    if overhead is None or theirs is None:
        return {}
    parts = ["duration", "residual", *COMPONENTS]
    if busy:
        rows = [f"{name}/{row}" for name, names in SUB_ROWS.items() for row in names]
        return dict.fromkeys(parts + rows, "contention")
    found = {}
    for name in parts:
        changes_s = [abs(one["drift"].get(name, 0.0)) for one in (mine, theirs)]
        # A difference that is larger than what the run itself moved by is one all the same.
        if max(changes_s) > 0 and max(changes_s) >= abs(_entry(overhead, (name,))["delta_s"]):
            found[name] = "drift"
            found |= {f"{name}/{row}": "drift" for row in SUB_ROWS.get(name, ())}
    return found


def _entry(overhead: Mapping[str, Any], part: tuple[str, ...]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (
        overhead[part[0]] if part[0] in ("duration", "residual") else overhead["components"][part[0]]
    )
    return found


def _seconds(time_ns: float | None) -> float | None:
    return None if time_ns is None else round(time_ns / 1e9, 9) + 0.0


def _share(part_ns: float | None, whole_ns: float) -> float | None:
    return None if part_ns is None or not whole_ns else round(part_ns / whole_ns, 9) + 0.0


def _rounded(value: float) -> float:
    return round(value, 9) + 0.0
