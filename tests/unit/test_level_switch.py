"""A level put in force while rounds go on: what is asked, what is refused, what a report says of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.evidence.reader import read_events
from analysis.evidence.values import LoKey, Wire
from analysis.ledger.connections import topology_of
from analysis.ledger.ledger import build_ledger
from analysis.report.figures import draw_figures
from analysis.report.html import render_page
from analysis.report.level_switch import switch_lines
from analysis.report.report import build_report
from tests.schemas import problems
from tests.unit.test_levels import without
from tests.unit.test_manifests import options
from ztprobe.cli import main
from ztprobe.errors import EnforcementError, UsageError
from ztprobe.experiment.level_switch import LevelSwitch, SwitchRecord, parse_level_switch
from ztprobe.experiment.names import Experiment
from ztprobe.experiment.topology import seen_topology
from ztprobe.paths import MANIFESTS_DIR
from ztprobe.profile.model import profile_names
from ztprobe.progress import QuietProgress
from ztprobe.rundir.schema import problem_in
from ztprobe.rundir.store import Run, load_run
from ztprobe.runtime.interface import Enforcement, LevelInForce, NotProven, Proof
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.later_level import LaterLevel, prepared, read_later_level
from ztprobe.runtime.local.workload import Workload, plan
from ztprobe.study.plan import load_study

RECONNECTING = Path(__file__).parents[1] / "data" / "net2-sec3-reconnect"
PASSED = {"name": "forbidden: outsider", "expected": "timed out", "observed": "timed out", "passed": True}


def test_a_level_and_a_round_are_read() -> None:
    switch = parse_level_switch("sec3@round4", Experiment(profile="net2", level=2), 10)
    assert switch == LevelSwitch(level=3, round=4)
    assert (switch.name, switch.slug) == ("sec3@round4", "to-sec3-round4")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sec1", "expected a level and a round, such as sec1@round4"),
        ("sec4@round2", "expected a level and a round"),
        ("sec1@4", "expected a level and a round"),
        ("sec0@round4", "net0-sec0 has that level from the start"),
        ("sec1@round1", "expected a round from 2 to 10"),
        ("sec1@round11", "expected a round from 2 to 10"),
        ("sec3@round10", "expected a round from 2 to 9 of the run's 10"),
    ],
)
def test_what_cannot_be_had_is_one_line(text: str, problem: str, capsys) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_level_switch(text, Experiment(profile="net0", level=0), 10)
    assert main(["trace", "--experiment", "net0-sec0", "--switch-level", text]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--switch-level" in said and problem in said


@pytest.mark.parametrize(("level", "later"), [(2, 0), (2, 1), (3, 0), (3, 1), (1, 2), (1, 3)])
def test_sidecars_come_to_what_has_nothing_yet_and_never_go(level: int, later: int) -> None:
    with pytest.raises(UsageError, match=f"from sec{level} only sec{level ^ 1} can be reached"):
        parse_level_switch(f"sec{later}@round4", Experiment(profile="net0", level=level), 10)


def later_of(level: int, later: int, manifests: Path = MANIFESTS_DIR) -> tuple[Workload, LaterLevel | None]:
    chosen = options(level, later_level=later)
    workload = plan(render(MANIFESTS_DIR / "overlays" / f"sec{level}"), chosen)
    return workload, read_later_level(manifests, chosen, workload)


@pytest.mark.parametrize(
    ("level", "later", "policies"), [(0, 1, 4), (2, 3, 4), (1, 0, 0), (3, 2, 0), (0, 2, 0), (0, 3, 4)]
)
def test_a_later_level_has_what_its_manifests_have(level: int, later: int, policies: int) -> None:
    workload, found = later_of(level, later)
    assert found is not None and len(found.workload.policies) == policies
    assert found.adds_sidecars is (level < 2 <= later)
    assert found.changes_policies is (level % 2 != later % 2)
    assert (prepared(workload, found) == workload) is not found.adds_sidecars


def test_what_runs_can_be_joined_by_sidecars() -> None:
    workload, later = later_of(0, 3)
    assert later is not None
    ready = prepared(workload, later)
    server = ready.server.application.env
    assert server["FL_LISTEN"] == "0.0.0.0:50051,127.0.0.1:15051"
    assert json.loads(server["FL_GRPC_OPTIONS"]) == {"grpc.so_reuseport": 1}
    for client in ready.clients:
        (mount,) = client.application.mounts
        assert str(mount.path / "address") == client.application.env["FL_SERVER_FILE"]
        assert mount.files == {"address": "fl-server.fl.svc.cluster.local:50051"}
    assert {c.application.env["FL_SERVER"] for c in later.workload.clients} == {"127.0.0.1:15001"}
    (proxy,) = (one for one in later.workload.server.containers if one.sidecar)
    assert proxy.env["FL_PROXY_ADDRESS"] == later.placed["fl-server"].address
    config = next(m.files["haproxy.cfg"] for m in proxy.mounts if m.files)
    assert 'bind "${FL_PROXY_ADDRESS}:50051" ssl' in config


def test_manifests_that_are_not_the_later_level_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(EnforcementError, match="not sec1: it has NetworkPolicies, and they have none"):
        later_of(0, 1, without(tmp_path, 1, "network-policy"))


def test_manifests_that_change_more_than_the_level_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "manifests"
    shutil.copytree(MANIFESTS_DIR, copy)
    file = copy / "base" / "clients.yaml"
    file.write_text(file.read_text().replace("memory: 2Gi", "memory: 1Gi"))
    for later in (1, 2, 3):
        with pytest.raises(EnforcementError, match=f"sec0 cannot become sec{later} .* pods fl-client-0"):
            later_of(0, later, copy)


class Switching:
    """A runtime that is asked to switch; what it finds is given."""

    def __init__(self, *, passed: bool) -> None:
        self.calls: list[str] = []
        self._proof = Proof(name="forbidden: a -> b", expected="timed out", observed="seen", passed=passed)

    def switch_level(self, started: Callable[[], None]) -> LevelInForce:
        started()
        self.calls.append("switch")
        found = Enforcement(network_policy_expected=True, mtls_expected=False, network_policy=(self._proof,))
        return LevelInForce(sidecars_ns=None, policies_ns=time.monotonic_ns(), enforcement=found)


def record_of(switch: LevelSwitch | None, runtime: Switching, meta: dict[str, Any]) -> SwitchRecord:
    return SwitchRecord(
        switch,
        runtime,  # type: ignore[arg-type]
        meta,
        QuietProgress(),
        lambda: runtime.calls.append("started"),
    )


def event(name: str, number: int) -> dict[str, Any]:
    return {"event": name, "round": number, "time_monotonic_ns": number * 1000}


def test_the_switch_comes_with_its_round_once_and_is_recorded() -> None:
    runtime = Switching(passed=True)
    meta: dict[str, Any] = {}
    record = record_of(LevelSwitch(level=1, round=3), runtime, meta)
    assert meta["level_switch"]["policies_ns"] is None and meta["level_switch"]["round"] == 3
    for number in (1, 2):
        record.take(event("round_start", number))
        record.take(event("round_end", number))
    assert runtime.calls == []
    record.take(event("round_start", 3))
    record.take(event("round_end", 3))
    record.take(event("round_start", 4))
    assert runtime.calls == ["started", "switch"]
    told = meta["level_switch"]
    assert told["due_ns"] == 3000 < told["from_ns"] <= told["policies_ns"] <= told["proven_ns"]
    assert [proof["passed"] for proof in told["proofs"]] == [True]


def test_a_level_that_is_not_in_force_ends_the_run() -> None:
    meta: dict[str, Any] = {}
    record = record_of(LevelSwitch(level=1, round=2), Switching(passed=False), meta)
    with pytest.raises(NotProven, match="not in force: forbidden: a -> b"):
        record.take(event("round_start", 2))
    assert [proof["passed"] for proof in meta["level_switch"]["proofs"]] == [False]


def test_without_a_switch_nothing_is_recorded() -> None:
    meta: dict[str, Any] = {}
    runtime = Switching(passed=True)
    record_of(None, runtime, meta).take(event("round_start", 1))
    assert meta == {} and runtime.calls == []


def switched(round_number: int, share: float, path: Path = RECONNECTING) -> tuple[Run, Any]:
    """A recorded run as if its level had been switched when so much of a round had passed."""
    run = load_run(path)
    ledger = build_ledger(run)
    one = next(one for one in ledger.rounds if one.round == round_number)
    at_ns = one.start_ns + round(share * one.duration_ns)
    told = {"to_level": 2, "round": round_number, "due_ns": one.start_ns, "from_ns": one.start_ns}
    told |= {"sidecars_ns": None, "policies_ns": at_ns, "proven_ns": at_ns, "proofs": [PASSED]}
    return dataclasses.replace(run, meta=run.meta | {"level_switch": told}), ledger


def test_rounds_are_marked_and_who_reconnected_is_told() -> None:
    run, ledger = switched(3, 0.1)
    assert problem_in(run.meta) is None
    report = build_report(run, ledger, None)
    assert problems("report", report) == []
    levels = {one["round"]: one["security_levels"] for one in report["rounds"]}
    last = max(levels)
    assert levels == {1: ["sec3"], 2: ["sec3"], 3: ["sec3", "sec2"]} | {
        number: ["sec2"] for number in range(4, last + 1)
    }
    switch = report["level_switch"]
    assert (switch["from"], switch["to"], switch["round"]) == ("sec3", "sec2", 3)
    # Its clients make a new connection after each training.
    assert [one["reconnected_round"] for one in switch["clients"]] == [3] * len(switch["clients"])
    assert switch["before"]["rounds"] == 1 and switch["after"]["rounds"] == last - 3
    words = " ".join(text for _, text in switch_lines(switch))
    clients = len(switch["clients"])
    assert {(one["tls"], one["mutual"]) for one in switch["clients"]} == {("1.3", "yes")}
    assert f"{clients} of {clients} clients reconnected, first in round 3, {clients} with mutual TLS" in words
    assert "proven: 1 of 1 check passed" in words
    assert any("changed in round 3 (sec3 to sec2)" in note for note in report["notes"])
    assert "3 (sec3, then sec2)" in render_page(report, draw_figures(report))


def test_until_the_last_client_speaks_through_its_sidecar_a_round_is_under_both() -> None:
    run, ledger = switched(3, 0.1)
    told = run.meta["level_switch"]
    run = dataclasses.replace(
        run,
        meta=run.meta | {"level_switch": told | {"sidecars_ns": told["policies_ns"], "policies_ns": None}},
    )
    report = build_report(run, ledger, None)
    levels = [one["security_levels"] for one in report["rounds"]]
    assert levels == [["sec3"], ["sec3"], ["sec3", "sec2"]]
    kept, kept_ledger = switched(3, 0.1, RECONNECTING.parent / "net2-sec3")
    told = kept.meta["level_switch"] | {"sidecars_ns": kept.meta["level_switch"]["policies_ns"]}
    kept = dataclasses.replace(kept, meta=kept.meta | {"level_switch": told})
    levels = [one["security_levels"] for one in build_report(kept, kept_ledger, None)["rounds"]]
    assert levels[2:] == [["sec3", "sec2"]] * len(levels[2:])


def test_a_connection_from_before_sidecars_came_is_a_direct_way() -> None:
    run = load_run(RECONNECTING)
    events = read_events(run.events)
    events.partners = {}  # as if no proxy had been seen at work
    opened_ns = sorted(
        packet.ts_ns
        for (pod, key), packets in events.packets.items()
        if isinstance(key, Wire) and pod.startswith("fl-client")
        for packet in packets[:1]
    )
    since_ns = opened_ns[len(opened_ns) // 2]
    ways = {
        sidecars_ns: topology_of(run.meta | {"level_switch": {"sidecars_ns": sidecars_ns}}, events).paths
        for sidecars_ns in (None, since_ns, opened_ns[-1] + 1)
    }
    # From the start: whoever has lost its loopback connection has lost it.
    assert {path.client_lo for path in ways[None]} == {LoKey(c, 0, 0) for c in ("fl-client-0", "fl-client-1")}
    assert {path.client_lo for path in ways[opened_ns[-1] + 1]} == {None}
    assert len({path.client_lo is None for path in ways[since_ns]}) == 2


class Looking:
    """An agent that sees what it is given, one look after the other."""

    def __init__(self, *looks: dict[str, Any]) -> None:
        self.looks = list(looks)

    def topology(self) -> dict[str, Any]:
        return self.looks.pop(0)


def look(**more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"pods": ["s", "c"], "endpoints": [], "connections": [], "behind_sidecar": {}}
    return empty | {"serves": {"s": ["c"]}} | more


def test_who_serves_whom_is_looked_at_again_until_sidecars_are_seen() -> None:
    pod = SimpleNamespace
    runtime: Any = pod(server=pod(name="s"), clients=(pod(name="c"),), edges=())
    sidecars = {"s": "proxy", "c": "proxy"}
    agent: Any = Looking(look(), look(), look(behind_sidecar=sidecars))
    meta: dict[str, Any] = {"level_switch": {"sidecars_ns": None}}
    for _ in range(3):
        meta["topology"] = seen_topology(meta, agent, runtime)
    assert len(agent.looks) == 2  # all was seen at the first
    meta["level_switch"]["sidecars_ns"] = 5
    for _ in range(4):
        meta["topology"] = seen_topology(meta, agent, runtime)
    assert agent.looks == []
    assert meta["topology"]["behind_sidecar"] == sidecars and meta["topology"]["rounds_of"] == "s"


def test_clients_that_keep_their_connections_are_told_as_that() -> None:
    run, ledger = switched(3, 0.1, RECONNECTING.parent / "net2-sec3")
    switch = build_report(run, ledger, None)["level_switch"]
    assert [one["reconnected_s"] for one in switch["clients"]] == [None] * len(switch["clients"])
    assert "2 clients kept the connection" in " ".join(text for _, text in switch_lines(switch))


def test_a_level_that_never_came_leaves_all_rounds_under_the_first() -> None:
    run, ledger = switched(3, 0.1)
    never = dict.fromkeys(("due_ns", "from_ns", "policies_ns", "proven_ns")) | {"proofs": []}
    run = dataclasses.replace(run, meta=run.meta | {"level_switch": run.meta["level_switch"] | never})
    assert problem_in(run.meta) is None
    report = build_report(run, ledger, None)
    assert problems("report", report) == []
    assert {tuple(one["security_levels"]) for one in report["rounds"]} == {("sec3",)}
    assert "sec2 was to be in force from round 3 on, and never was." in report["notes"]


def test_a_run_without_a_switch_is_not_marked() -> None:
    run = load_run(RECONNECTING)
    ledger = build_ledger(run)
    report = build_report(run, ledger, None)
    assert "level_switch" not in report
    assert all("security_levels" not in one for one in report["rounds"])


def test_the_dynamic_study_switches_two_of_three_runs() -> None:
    cells = load_study("dynamic", profile_names()).cells
    assert len({cell.name for cell in cells}) == len(cells) == 24
    assert sum(cell.level_switch == LevelSwitch(level=1, round=6) for cell in cells) == 8
    assert "net7-sec0-reconnect-to-sec1-round6" in {cell.name for cell in cells}
    told = {cell.name: cell.as_dict() for cell in cells}
    assert told["net0-sec0-to-sec1-round6"]["level_switch"] == "sec1@round6"
    assert "level_switch" not in told["net0-sec0"]


def test_a_switch_that_a_cell_cannot_have_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("name: x\nrounds: 5\nfactors:\n  level: [0, 1]\n  switch_level: [none, sec1@round3]\n")
    with pytest.raises(UsageError, match=r"plan\.yaml:5: factors\.switch_level: sec1@round3: net0-sec1 has"):
        load_study(str(file), profile_names())
