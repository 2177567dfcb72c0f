"""What a reader has to know of contention and drift before any number: the same in table, page and JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from analysis.report.wording import NOTHING, PART_NAMES, human_percent, human_time, listed
from ztprobe.cpu_numbers import cpu_words

__all__ = (
    "advice",
    "busy_words",
    "duet_notes",
    "first_sentences",
    "machine_differences",
    "machine_rows",
    "machine_sentence",
    "not_recorded",
)

_MOST_NAMED = 3
_CLOCKED_APART = 0.05
_BUSY = {
    "foreign_share": "other processes used {share} of {whose} CPU time ({cpus:.2f} of {of} CPUs)",
    "steal_share": "the hypervisor took {share} of {its} CPU time",
    "memory_stalled_share": "tasks waited for memory {share} of the time{on}",
}


def first_sentences(report: Mapping[str, Any]) -> list[str]:
    """Contention, then drift; empty where there is none."""
    judged = report["contention"]
    return [*_contention(judged, report), *_drift(judged, report)]


def _contention(judged: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[str]:
    runs = [one for one in (judged["run"], judged["baseline"]) if one is not None]
    if not judged["contended"]:
        return
    # The busiest first, whichever it is: that is the run that was disturbed.
    runs.sort(key=lambda one: (not one["busy"], not one["known"], -(one.get("foreign_share") or 0.0)))
    whose = [_whose(one, judged) for one in runs]
    said = [f"While {whose[0]} rounds ran, {' and '.join(busy_words(runs[0]))}"]
    for one, other in zip(runs[1:], whose[1:], strict=True):
        words = " and ".join(busy_words(one)) or (
            f"other processes used {human_percent(one['foreign_share'])}"
            if one["known"]
            else "is not recorded"
        )
        said.append(f"while {other} ran, {words}" if one["known"] else f"what happened in {other} {words}")
    limit = f"{100 * judged['quiet_below_share']:g} %"
    yield f"{'; '.join(said)} (quiet is below {limit})."
    if report["overhead"] is None:
        yield "Rounds may be longer by that, and medians and shares with them."
        return
    explained = [_difference(report, name) for name in judged["explains"][:_MOST_NAMED]]
    more = len(judged["explains"]) - len(explained)
    if more > 0:
        explained.append(f"{more} more")
    if explained:
        what = f"That could explain {listed(explained)} without any overhead"
    else:
        name = _reached_most(judged)
        reach = human_time(judged["reach_s"][name])
        what = f"That reaches {PART_NAMES[name]} most (up to {reach} of {_difference(report, name)})"
    yield f"{what}; differences between these runs have no interval."


def _drift(judged: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[str]:
    for one in (judged["run"], judged["baseline"]):
        if one is None or not one["drift"]:
            continue
        by_s = one["drift"]["duration"]
        parts = [
            f"{PART_NAMES[name]} {human_time(change_s, signed=True)}"
            for name, change_s in one["drift"].items()
            if name != "duration"
        ]
        mostly = f" ({listed(parts)})" if parts else ""
        how = "longer" if by_s > 0 else "shorter"
        whose = _whose(one, judged)
        sentence = (
            f"{whose[0].upper()}{whose[1:]} rounds got {how} by {human_time(abs(by_s))} from the first to "
            f"the last{mostly}, so no one value speaks for all of them"
        )
        if "drift" in judged["withheld"].values():
            sentence += "; where a difference is no larger than that, it has no interval"
        yield f"{sentence}."


def advice(report: Mapping[str, Any]) -> str | None:
    """The diagnosis of a contended run, in one sentence; None: the machine gives no reason for one."""
    judged = report["contention"]
    if not judged["contended"]:
        return None
    kinds = {kind for one in (judged["run"], judged["baseline"]) if one is not None for kind in one["busy"]}
    if "foreign_share" in kinds:
        what = "other processes used its CPUs"
        waiting = "" if report.get("attachment") else " with --wait-for-quiet"
        do = f"end them or move them, and trace again{waiting}"
    elif "steal_share" in kinds:
        what = "the hypervisor gave its CPUs to others"
        do = "trace again on a machine whose CPUs are its own"
    else:
        what = "its memory was short"
        do = "free memory or run fewer clients, and trace again"
    if report["overhead"] is None:
        name = _largest(report)
        subject = f"{_title(name)} is the largest part of a round, but how much of it is contention is open"
    elif judged["explains"]:
        name = judged["explains"][0]
        subject = f"{_title(name)} differs by {_delta(report, name)}, which may be contention and no overhead"
    else:
        name = _reached_most(judged)
        subject = (
            f"{_title(name)} differs by {_delta(report, name)}, of which contention may be "
            f"{human_time(judged['reach_s'][name])}"
        )
    return f"{subject}, because {_busy_machine(judged)} was not quiet ({what}): {do}."


def _busy_machine(judged: Mapping[str, Any]) -> str:
    """Which it was, where a run was on several."""
    runs = [one for one in (judged["run"], judged["baseline"]) if one is not None and one["busy"]]
    nodes = dict.fromkeys(one["node"] for one in runs if one.get("node"))
    return " and ".join(nodes) or "the machine"


def machine_sentence(report: Mapping[str, Any]) -> str:
    """What else the machine did, for the line below the table."""
    judged = report["contention"]
    runs = [one for one in (judged["run"], judged["baseline"]) if one is not None]
    if not any(one["known"] for one in runs):
        return "not recorded"
    said = []
    for one in runs:
        if not one["known"]:
            said.append(f"not recorded in {_whose(one, judged)} rounds")
            continue
        stolen = f", stolen {human_percent(one['steal_share'])}" if one["steal_share"] else ""
        on = f" on {one['node']}" if one.get("node") else ""
        said.append(f"{human_percent(one['foreign_share'])}{on} in {_whose(one, judged)} rounds{stolen}")
    limit = f"{100 * judged['quiet_below_share']:g} %"
    of = (
        "the machine's CPU time"
        if "own_cpus" not in runs[0]
        else f"the time of {cpu_words(runs[0]['own_cpus'])}"
    )
    return f"{'; '.join(said)} (of {of}; quiet is below {limit})"


def not_recorded(report: Mapping[str, Any]) -> str | None:
    """The note for runs that say nothing of their machine."""
    judged = report["contention"]
    unknown = [one for one in (judged["run"], judged["baseline"]) if one is not None and not one["known"]]
    if not unknown:
        return None
    whose = " and ".join(_whose(one, judged) for one in unknown)
    return f"Foreign CPU time was not recorded, so whether others lengthened {whose} rounds is unknown."


def duet_notes(meta: Mapping[str, Any]) -> list[str]:
    """Of half of a duet pair, from run.json: where it ran, and beside what."""
    if (own := meta.get("own_cores")) is None:
        return []
    return [
        f"This run had {cpu_words(own['cpus'])} of {own['of']} for itself, while {own['beside']} ran on"
        " others: times are those of a machine of this size, and are to be compared with that run's."
    ]


def machine_differences(report: Mapping[str, Any]) -> list[str]:
    """Notes where a run and its baseline had other CPUs, or the same at another speed."""
    mine, theirs = report["contention"]["run"], report["contention"]["baseline"]
    if theirs is None:
        return []
    said = []
    models = [one["cpu_model"] for one in (mine, theirs)]
    if all(models) and models[0] != models[1]:
        said.append(f"The baseline ran on another CPU: {models[1]} instead of {models[0]}.")
    clocks_mhz = [one.get("frequency_mhz") for one in (mine, theirs)]
    if all(clocks_mhz) and abs(clocks_mhz[0] / clocks_mhz[1] - 1) >= _CLOCKED_APART:
        said.append(
            f"CPUs ran at {clocks_mhz[0]:,.0f} MHz in this run's rounds and at {clocks_mhz[1]:,.0f} MHz in "
            "the baseline's, so compute may differ by as much."
        )
    return said


def machine_rows(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(name, value per run) of what was recorded of the machine during counted rounds, for the page."""
    runs = [one for one in (report["contention"]["run"], report["contention"]["baseline"]) if one is not None]
    rows: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("foreign CPU time, of the machine's", lambda one: human_percent(one.get("foreign_share"))),
        ("foreign CPU time per round", lambda one: human_time(one.get("foreign_cpu_s"))),
        ("stolen by the hypervisor", lambda one: human_percent(one.get("steal_share"))),
        ("critical path waiting for a CPU, per round", lambda one: human_time(one["cpu_wait_s"])),
        ("some task waiting for a CPU", lambda one: human_percent(one.get("cpu_stalled_share"))),
        ("some task waiting for memory", lambda one: human_percent(one.get("memory_stalled_share"))),
        ("some task waiting for input or output", lambda one: human_percent(one.get("io_stalled_share"))),
        ("least memory available", lambda one: _gigabytes(one.get("least_available_bytes"))),
        ("load (1 minute)", lambda one: _number(one.get("load_1m"), "")),
        ("CPU frequency", lambda one: _number(one.get("frequency_mhz"), " MHz")),
        ("CPUs", lambda one: f"{one['cpus']} × {one['cpu_model'] or 'unknown'}{_own(one)}"),
    ]
    if any("nodes" in one for one in runs):
        rows.insert(1, ("the same by node", _by_node))
    return [(name, [value(one) for one in runs]) for name, value in rows]


def _own(one: Mapping[str, Any]) -> str:
    return f" ({cpu_words(one['own_cpus'])})" if "own_cpus" in one else ""


def _by_node(one: Mapping[str, Any]) -> str:
    told = [f"{each['node']} {human_percent(each['foreign_share'])}" for each in one.get("nodes", ())]
    return ", ".join(told) or NOTHING


def _gigabytes(size_bytes: int | None) -> str:
    return NOTHING if size_bytes is None else f"{size_bytes / 1e9:.1f} GB"


def _number(value: float | None, unit: str) -> str:
    return NOTHING if value is None else f"{value:,.4g}{unit}"


def busy_words(one: Mapping[str, Any]) -> list[str]:
    """What others did to the machine of one run (the contention's `run` or `baseline`); empty: nothing."""
    whose, its, on = "the machine's", "its", ""
    if node := one.get("node"):
        whose, its, on = f"{node}'s", f"{node}'s", f" on {node}"
    elif "own_cpus" in one:
        whose = f"{cpu_words(one['own_cpus'])}'s"
    return [
        _BUSY[kind].format(
            share=human_percent(one[kind]),
            cpus=one["foreign_cpus"],
            of=one["cpus"],
            whose=whose,
            its=its,
            on=on,
        )
        for kind in one["busy"]
    ]


def _whose(one: Mapping[str, Any], judged: Mapping[str, Any]) -> str:
    return "the baseline's" if one is judged["baseline"] else "this run's"


def _difference(report: Mapping[str, Any], name: str) -> str:
    return f"{PART_NAMES[name]} {_delta(report, name)}"


def _delta(report: Mapping[str, Any], name: str) -> str:
    overhead: Mapping[str, Any] = report["overhead"]
    entry: Mapping[str, Any] = overhead["residual"] if name == "residual" else overhead["components"][name]
    return human_time(entry["delta_s"], signed=True)


def _reached_most(judged: Mapping[str, Any]) -> str:
    reach_s: dict[str, float] = {
        name: value for name, value in judged["reach_s"].items() if name != "duration"
    }
    return max(reach_s, key=lambda name: reach_s[name])


def _largest(report: Mapping[str, Any]) -> str:
    parts: dict[str, Any] = {**report["components"], "residual": report["residual"]}
    return max(parts, key=lambda name: parts[name].get("share") or 0.0)


def _title(name: str) -> str:
    return PART_NAMES[name][0].upper() + PART_NAMES[name][1:]
