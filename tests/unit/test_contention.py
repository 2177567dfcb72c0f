"""Runs whose machine others used: told first, named, and without an interval; quiet ones left in peace."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.contention import machine_table
from analysis.ledger.model import Ledger
from analysis.report.figures import draw_figures
from analysis.report.html import render_page
from analysis.report.report import build_report
from analysis.report.text_report import WIDTH, print_report
from tests.unit.synthetic_run import NET0_SEC0, make_ledger, make_run
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import Run

CPUS = 2
STEP_NS = 500_000_000


def machine(ledger: Ledger, *, foreign: float = 0.0, steal: float = 0.0, memory: float = 0.0) -> pd.DataFrame:
    """The record of a machine on which others use that share of the CPU time, all the time."""
    begin_ns = min(one.start_ns for one in ledger.rounds) - 3 * STEP_NS
    end_ns = max(one.start_ns + one.duration_ns for one in ledger.rounds) + STEP_NS
    starts = range(begin_ns, end_ns, STEP_NS)
    return pd.DataFrame(
        {
            "from_ns": list(starts),
            "to_ns": [start + STEP_NS for start in starts],
            "foreign_ns": round(foreign * CPUS * STEP_NS),
            "steal_ns": round(steal * CPUS * STEP_NS),
            "cpu_stalled_ns": STEP_NS // 3,  # the deployment's own threads wait for each other
            "memory_stalled_ns": round(memory * STEP_NS),
            "io_stalled_ns": 0,
            "available_bytes": 8 << 30,
            "load_1m": 2.5,
        }
    )


def recorded(ledger: Ledger, name: str = "net0-sec0", **load: float) -> tuple[Run, Ledger]:
    run = make_run(name, ledger, machine_load={"cpus": CPUS, "source": "cpuacct"})
    return replace(run, events={"machine": machine(ledger, **load)}), ledger


def pair(
    mine: dict[str, float] | None = None,
    theirs: dict[str, float] | None = None,
    *,
    slower_by: float = 1.0,
    name: str = "net0-sec0",
) -> dict[str, Any]:
    """The report of a run against its baseline, both equal but for the time that compute takes."""
    parts = NET0_SEC0 | {"compute": NET0_SEC0["compute"] * slower_by}
    run, ledger = recorded(make_ledger(parts, tls=False), name, **(mine or {}))
    baseline = recorded(make_ledger(NET0_SEC0, seed=9, tls=False), **(theirs or {}))
    return build_report(run, ledger, baseline)


def intervals(report: dict[str, Any]) -> set[str]:
    """What stands in the place of every interval."""
    overhead = report["overhead"]
    entries = [overhead["duration"], overhead["residual"], *overhead["components"].values()]
    entries += [entry for rows in overhead["sub_rows"].values() for entry in rows.values()]
    return {entry.get("withheld", "given") for entry in entries}


def test_quiet_runs_are_left_in_peace() -> None:
    report = pair({"foreign": 0.015}, {"foreign": 0.004})
    assert report["contention"]["contended"] is False
    assert report["contention"]["said"] == []
    assert intervals(report) == {"given"}
    assert report["contention"]["run"]["foreign_share"] == pytest.approx(0.015)
    assert "read this first" not in text_of(report)


@pytest.mark.parametrize("share_of_a_core", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("disturbed", ["run", "baseline"])
def test_a_competitor_in_one_of_two_runs_is_told(share_of_a_core: float, disturbed: str) -> None:
    busy, quiet = {"foreign": share_of_a_core / CPUS}, {"foreign": 0.002}
    # As the work has so much less of the machine.
    slower = 1 / (1 - share_of_a_core / CPUS)
    report = (
        pair(busy, quiet, slower_by=slower) if disturbed == "run" else pair(quiet, busy, slower_by=1 / slower)
    )
    judged = report["contention"]
    assert judged["contended"] is True
    assert judged["explains"][0] == "compute"
    assert judged[disturbed]["busy"] == ["foreign_share"]
    assert judged[disturbed]["foreign_cpus"] == pytest.approx(share_of_a_core, abs=1e-6)
    assert intervals(report) == {"contention"}
    first = judged["said"][0]
    assert first.startswith("While this run's" if disturbed == "run" else "While the baseline's")
    assert f"{100 * share_of_a_core / CPUS:.1f} % of the machine's CPU time" in first
    assert "compute" in judged["said"][1]
    assert report["diagnosis"].startswith("Compute differs by")
    assert "--wait-for-quiet" in report["diagnosis"]


def test_contention_is_said_before_the_table_and_before_the_page_s_lead() -> None:
    report = pair({"foreign": 0.25}, slower_by=1.3)
    text = text_of(report)
    assert text.index("read this first") < text.index("median/round")
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "withheld: contention" in text
    page = render_page(report, draw_figures(report))
    assert page.index("Read this first") < page.index('<p class="lead">')
    assert "Read this too" in page or not report["notes"]


def test_a_difference_beyond_reach_is_not_explained_away() -> None:
    report = pair({"foreign": 0.05}, slower_by=3.0)
    assert report["contention"]["contended"] is True
    assert "compute" not in report["contention"]["explains"]
    assert report["contention"]["reach_s"]["compute"] == pytest.approx(0.1 * 1.65 * 3, rel=0.05)


def test_a_difference_that_reaches_nowhere_names_where_contention_goes() -> None:
    report = pair({"foreign": 0.05}, slower_by=3.0)
    said = " ".join(report["contention"]["said"])
    assert "compute" in said


@pytest.mark.parametrize(
    ("load", "words", "advice"),
    [
        ({"steal": 0.04}, "the hypervisor took 4.0 %", "CPUs are its own"),
        ({"memory": 0.1}, "waited for memory 10.0 %", "free memory"),
    ],
)
def test_steal_and_memory_pressure_spoil_figures_too(load: dict[str, float], words: str, advice: str) -> None:
    report = pair(load, slower_by=1.02)
    assert words in report["contention"]["said"][0]
    assert advice in report["diagnosis"]
    assert intervals(report) == {"contention"}


def test_waiting_that_the_deployment_causes_itself_is_no_contention() -> None:
    report = pair()
    assert report["contention"]["run"]["cpu_stalled_share"] == pytest.approx(1 / 3, abs=1e-6)
    assert report["contention"]["run"]["cpu_wait_s"] > 0
    assert report["contention"]["contended"] is False


def test_a_run_alone_is_judged_too() -> None:
    run, ledger = recorded(make_ledger(NET0_SEC0, tls=False), foreign=0.2)
    report = build_report(run, ledger, None)
    assert report["contention"]["contended"] is True
    assert "how much of it is contention is open" in report["diagnosis"]
    assert "read this first" in text_of(report)


def test_a_round_tells_what_others_used_in_it() -> None:
    run, ledger = recorded(make_ledger(NET0_SEC0, tls=False))
    table = run.events["machine"]
    third = ledger.rounds[2]
    inside = (table["from_ns"] < third.start_ns + third.duration_ns) & (table["to_ns"] > third.start_ns)
    table.loc[inside, "foreign_ns"] = STEP_NS  # one of two CPUs
    rounds = build_report(run, ledger, None)["rounds"]
    assert rounds[2]["machine"]["foreign_share"] == pytest.approx(0.5)
    assert rounds[2]["machine"]["foreign_cpu_s"] == pytest.approx(rounds[2]["duration_s"], rel=1e-6)
    assert rounds[6]["machine"]["foreign_share"] == 0


def test_what_others_used_outside_of_counted_rounds_is_no_matter() -> None:
    """Round 1 is left out of every figure, so what disturbed it disturbs none."""
    run, ledger = recorded(make_ledger(NET0_SEC0, tls=False))
    table = run.events["machine"]
    table.loc[table["to_ns"] <= ledger.rounds[1].start_ns, "foreign_ns"] = STEP_NS
    assert build_report(run, ledger, None)["contention"]["contended"] is False


def test_a_run_without_a_record_is_unknown_and_says_so() -> None:
    ledger = make_ledger(NET0_SEC0, tls=False)
    report = build_report(make_run("net0-sec0", ledger), ledger, recorded(make_ledger(NET0_SEC0, seed=9)))
    assert report["contention"]["known"] is False
    assert report["contention"]["contended"] is None
    assert intervals(report) == {"given"}
    assert any("not recorded" in note and "this run's" in note for note in report["notes"])
    assert "not recorded in this run's rounds" in " ".join(text_of(report).split())


def test_a_record_that_ended_early_is_unknown() -> None:
    run, ledger = recorded(make_ledger(NET0_SEC0, tls=False))
    early = run.events["machine"].head(6)
    report = build_report(replace(run, events={"machine": early}), ledger, None)
    assert report["contention"]["run"]["known"] is False


def on_nodes(ledger: Ledger, **foreign: float | None) -> tuple[Run, Ledger]:
    """A run on nodes of these names, of whose CPU time others use that share; None: not recorded."""
    tables = [
        machine(ledger, foreign=share).assign(node=name)
        for name, share in foreign.items()
        if share is not None
    ]
    nodes = [{"node": name, "cpus": CPUS, "same_kernel_as": [], "problem": None} for name in foreign]
    run = make_run("net0-sec0", ledger, machine_load={"cpus": CPUS, "source": "cgroup2", "nodes": nodes})
    return replace(run, events={"machine": pd.concat(tables, ignore_index=True)}), ledger


def test_a_run_is_contended_if_any_of_its_nodes_was_and_that_one_is_named() -> None:
    ledger = make_ledger(NET0_SEC0, tls=False)
    quiet = on_nodes(ledger, alpha=0.001, beta=0.002)
    assert build_report(*quiet, None)["contention"]["contended"] is False
    report = build_report(*on_nodes(ledger, alpha=0.001, beta=0.3, gamma=0.1), quiet)
    judged = report["contention"]
    assert judged["contended"] is True
    assert intervals(report) == {"contention"}
    found = judged["run"]
    assert (found["node"], found["busy"]) == ("beta", ["foreign_share"])
    assert found["foreign_share"] == pytest.approx(0.3)
    assert {one["node"]: one["foreign_share"] for one in found["nodes"]} == pytest.approx(
        {"alpha": 0.001, "beta": 0.3, "gamma": 0.1}
    )
    assert "30.0 % of beta's CPU time (0.60 of 2 CPUs)" in judged["said"][0]
    assert "because beta was not quiet" in report["diagnosis"]
    assert {one["machine"]["node"] for one in report["rounds"]} == {"beta"}
    assert "on beta in this run's rounds" in " ".join(text_of(report).split())
    page = render_page(report, draw_figures(report))
    assert "alpha 0.1 %, beta 30.0 %, gamma 10.0 %" in page


def test_a_larger_node_reaches_further_though_its_share_is_smaller() -> None:
    """A thread waits for one CPU: 3.2 of 64 are enough to keep it waiting all the time."""
    ledger = make_ledger(NET0_SEC0, tls=False)
    run, _ = on_nodes(ledger, small=0.3, large=0.05 * 64 / CPUS)
    run.meta["machine_load"]["nodes"][1]["cpus"] = 64
    reach_s = build_report(run, ledger, on_nodes(ledger, small=0.0, large=0.0))["contention"]["reach_s"]
    mean_s = sum(one.components_ns["compute"] for one in ledger.rounds[1:]) / 1e9 / len(ledger.rounds[1:])
    assert reach_s["compute"] == pytest.approx(mean_s)


def test_a_node_without_a_record_leaves_open_what_the_others_do_not_decide() -> None:
    ledger = make_ledger(NET0_SEC0, tls=False)
    open_ = build_report(*on_nodes(ledger, alpha=0.001, beta=None), None)["contention"]
    assert (open_["known"], open_["contended"]) == (False, None)
    assert [one["known"] for one in open_["run"]["nodes"]] == [True, False]
    busy = build_report(*on_nodes(ledger, alpha=0.2, beta=None), None)["contention"]
    assert (busy["known"], busy["contended"], busy["run"]["node"]) == (False, True, "alpha")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda table: table.drop(columns="foreign_ns"), "no column foreign_ns"),
        (lambda table: table.assign(steal_ns="much"), "steal_ns is no column of integers"),
        (lambda table: table.assign(to_ns=table["from_ns"]), "ends before it begins"),
        (lambda table: table.head(3), "the file was changed"),
    ],
)
def test_a_damaged_record_is_refused(damage: Any, words: str) -> None:
    run, _ = recorded(make_ledger(NET0_SEC0, tls=False))
    table = run.events["machine"]
    meta = run.meta | {"table_rows": {"machine": len(table)}}
    damaged = replace(run, path=Path("runs/x"), meta=meta, events={"machine": damage(table)})
    with pytest.raises(RunDirError, match=words):
        machine_table(damaged)
    assert machine_table(replace(run, meta=meta)) is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cpu_model": "Other"}, "another CPU: Other instead of One"),
        ({}, "at 3,000 MHz in this run's rounds and at 2,000 MHz in the baseline's"),
    ],
)
def test_other_cpus_and_other_speeds_are_noted(changes: dict[str, Any], words: str) -> None:
    sides = []
    for khz, more in ((3_000_000, {}), (2_000_000, changes)):
        run, ledger = recorded(make_ledger(NET0_SEC0, tls=False))
        load = run.meta["machine_load"] | {"cpu_model": "One"} | more
        table = run.events["machine"].assign(frequency_khz=khz)
        sides.append(
            (replace(run, meta=run.meta | {"machine_load": load}, events={"machine": table}), ledger)
        )
    report = build_report(*sides[0], sides[1])
    assert any(words in note for note in report["notes"])
    page = render_page(report, draw_figures(report))
    assert "3,000 MHz" in page and "8.6 GB" in page


def drifting(by: float) -> Ledger:
    """Rounds whose compute grows from the first to the last, with all others following in time."""
    made, start_ns = [], 0
    for number, one in enumerate(make_ledger(NET0_SEC0, rounds=12, tls=False).rounds):
        more_ns = round(one.components_ns["compute"] * by * number / 11)
        parts_ns = one.components_ns | {"compute": one.components_ns["compute"] + more_ns}
        start_ns = start_ns or one.start_ns
        duration_ns = one.duration_ns + more_ns
        made.append(replace(one, components_ns=parts_ns, start_ns=start_ns, duration_ns=duration_ns))
        start_ns += duration_ns
    return replace(make_ledger(NET0_SEC0, tls=False), rounds=tuple(made))


def test_drift_within_a_run_is_told_and_withholds_what_it_could_be() -> None:
    run, ledger = recorded(drifting(0.8))
    report = build_report(run, ledger, recorded(make_ledger(NET0_SEC0, rounds=12, seed=9, tls=False)))
    judged = report["contention"]
    assert judged["contended"] is False
    assert judged["run"]["drift"].keys() == {"duration", "compute"}
    assert judged["run"]["drift"]["compute"] == pytest.approx(0.8 * 1.65 * 10 / 11, rel=0.25)
    assert judged["withheld"] == {
        "duration": "drift",
        "compute": "drift",
        "compute/cpu_wait": "drift",
        "compute/imports": "drift",
    }
    assert "This run's rounds got longer" in judged["said"][0]
    assert "withheld: drift" in text_of(report)


def text_of(report: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_report(report, stream)
    return stream.getvalue()
