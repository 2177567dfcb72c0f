"""Injected faults: the plan, the objects with the mistake in them, the judgement, going on where it was."""

from __future__ import annotations

import fcntl
import functools
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from analysis.causes.classes import CAUSES, FailureClass
from ztprobe.cli.entry import ztprobe
from ztprobe.errors import RunDirError, UsageError
from ztprobe.experiment.names import LEVELS
from ztprobe.paths import MANIFESTS_DIR
from ztprobe.profile.model import load_profile, profile_names
from ztprobe.progress import QuietProgress
from ztprobe.rundir.claim import LOCK
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local import placement
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.level import check_level
from ztprobe.runtime.local.workload import plan
from ztprobe.validate.faults import suite
from ztprobe.validate.faults.catalogue import FAULTS, LEFT_OUT
from ztprobe.validate.faults.catalogue.healthy import healthy_runs
from ztprobe.validate.faults.judgement import judged
from ztprobe.validate.faults.model import NOTHING, Fault
from ztprobe.validate.faults.objects import EditedObjects, overlay_name, write_overlay
from ztprobe.validate.faults.plan import COMBINATIONS, PlannedFault, choose_faults, plan_faults
from ztprobe.validate.faults.runner import FaultRun, NamedCause, spec_of_fault

PLANNED = plan_faults(FAULTS)
# Said where what was seen does not tell which of several causes it is; nobody injects them.
LAST_RESORTS = {
    "tls.bad_certificate",
    "tls.handshake_failed",
    "application.peer_unreachable",
    "application.connection_reset",
    "application.packets_lost",  # of deployments that ran already: nothing of ours lies on their way
}


def names(planned: list[PlannedFault]) -> list[str]:
    return [one.name for one in planned]


def test_every_cause_is_injected_in_three_variants_or_left_out_with_a_reason() -> None:
    injected = [fault.cause for fault in FAULTS]
    assert len(set(injected)) == len(injected)
    assert {*injected, *(left.cause for left in LEFT_OUT)} | LAST_RESORTS == set(CAUSES)
    assert not set(injected) & {left.cause for left in LEFT_OUT}
    for fault in FAULTS:
        assert len(fault.variants) == 3, fault.cause
        assert len({(v.what, v.level) for v in fault.variants}) == 3, fault.cause
    for left in LEFT_OUT:
        assert left.tried
        assert left.said


def test_each_failure_class_meets_all_networks_and_modes() -> None:
    met: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for one in PLANNED:
        met[one.fault.cause.partition(".")[0]].add((one.network, one.mode))
        assert one.network in one.variant.networks
        assert one.mode in one.variant.modes
    assert met == {failure_class.value: set(COMBINATIONS) for failure_class in FailureClass}


def test_a_run_is_the_same_whoever_asks_for_it() -> None:
    assert plan_faults(FAULTS) == PLANNED
    assert len(set(names(PLANNED))) == len(PLANNED)
    (one,) = choose_faults(PLANNED, [PLANNED[7].name])
    assert one == PLANNED[7]
    assert names(choose_faults(PLANNED, ["policy-default-deny"])) == [
        f"policy-default-deny-{number}" for number in (1, 2, 3)
    ]
    assert choose_faults(PLANNED, []) == PLANNED
    with pytest.raises(UsageError, match="unknown fault 'policy'"):
        choose_faults(PLANNED, ["policy"])


def test_healthy_runs_meet_every_profile_level_and_mode() -> None:
    planned = healthy_runs(profile_names())
    assert len(planned) == 30
    assert {one.network for one in planned} == set(profile_names())
    assert {one.variant.level for one in planned} == set(LEVELS)
    assert {one.mode for one in planned} == {"persistent", "reconnecting"}
    assert len({(one.network, one.variant.level) for one in planned}) == 30
    assert {one.fault.cause for one in planned} == {NOTHING}


@functools.cache
def documents(level: int, edges: bool = False) -> str:
    """A level's objects as nobody has edited them, as JSON."""
    return json.dumps(render(MANIFESTS_DIR / "overlays" / overlay_name(level, edges=edges)))


def edited(planned: PlannedFault) -> list[Any]:
    """A run's objects, with the mistake in them."""
    objects = EditedObjects(json.loads(documents(planned.variant.level, bool(planned.variant.edges))))
    if planned.variant.edit is not None:
        planned.variant.edit(objects)
    return objects.documents


@pytest.mark.parametrize("planned", PLANNED, ids=names(PLANNED))
def test_what_is_broken_can_still_be_run(planned: PlannedFault, tmp_path: Path) -> None:
    """The edited objects are a workload of that level, so that the run itself is what fails."""
    variant = planned.variant
    whole = documents(variant.level, bool(variant.edges))
    assert (json.dumps(edited(planned)) == whole) == (variant.edit is None)
    options: WorkloadOptions = spec_of_fault(planned, tmp_path / "run", tmp_path).options
    workload = plan(edited(planned), options)
    rules = placement.rules(workload, placement.place(workload), check_port_names=False)
    check_level(options, workload, rules)
    assert options.reconnect == (planned.mode == "reconnecting")
    # Something is wrong: with the objects, from outside, with the network or with the workload.
    wrong = (variant.edit, variant.prepare, variant.acts, variant.profile, variant.environment)
    assert any(wrong) or planned.fault.cause == "application.deadline_too_short"


def test_an_overlay_of_edited_objects_is_read_as_it_was_meant(tmp_path: Path) -> None:
    (planned,) = choose_faults(PLANNED, ["policy-wrong-port-range-3"])
    manifests = write_overlay(planned.variant.level, planned.variant.edit, tmp_path / "manifests")
    assert render(manifests / "overlays" / "sec3") == edited(planned)


def test_broken_policies_deny_what_they_should_and_whole_ones_do_not(tmp_path: Path) -> None:
    for planned in PLANNED:
        if not planned.fault.cause.startswith("policy.") or planned.variant.edit is None:
            continue
        workload = plan(edited(planned), spec_of_fault(planned, tmp_path, tmp_path).options)
        rules = placement.rules(workload, placement.place(workload), check_port_names=False)
        asks = [("kube-dns", "UDP", 53), ("kube-dns", "TCP", 53), ("fl-server", "TCP", 50051)]
        open_ways = [rules.allows("fl-client-0", target, kind, port).allowed for target, kind, port in asks]
        expected = {
            "policy.dns_blocked": [False, False, True],
            "policy.dns_blocked_udp": [False, True, True],
            "policy.dns_blocked_tcp": [True, False, True],
        }.get(planned.fault.cause, [True, True, False])
        assert open_ways == expected, planned.name


def result(name: str, cause: str, *ids: str, is_there: bool = True, level: int = 1) -> dict[str, Any]:
    named = [{"id": one, "confidence": 0.9 - number / 10} for number, one in enumerate(ids)]
    about = {"what": "", "experiment": f"net0-sec{level}", "mode": "persistent", "problems": [], "ended": ""}
    return about | {"name": name, "cause": cause, "named": named, "is_there": is_there}


def test_the_judgement_counts_first_and_second_places() -> None:
    right = [result(f"a-{n}", "tls.unknown_ca", "tls.unknown_ca") for n in range(19)]
    second = result("b-1", "policy.default_deny", "policy.wrong_port", "policy.default_deny")
    content = judged([*right, second], [])
    assert (content["faults"], content["first"], content["first_two"]) == (20, 19, 20)
    assert content["limits"]["first"]  # 95 %
    assert not content["limits"]["each_cause"]  # the one run of its cause
    assert content["confusion"] == {
        "tls.unknown_ca": {"tls.unknown_ca": 19},
        "policy.default_deny": {"policy.wrong_port": 1},
    }
    assert [one["name"] for one in content["missed"]] == ["b-1"]
    assert not content["passed"]
    assert judged(right, [])["passed"]


def test_the_judgement_is_strict_about_claims_that_nobody_may_make() -> None:
    healthy = result("healthy-1", NOTHING, "tls.unknown_ca")
    assert judged([healthy], [])["healthy_with_a_cause"] == ["healthy-1"]
    assert not judged([healthy], [])["passed"]
    assert judged([result("healthy-1", NOTHING)], [])["passed"]
    blamed = result("c-1", "tls.unknown_ca", "tls.unknown_ca", "policy.default_deny", level=2)
    assert judged([blamed], [])["policy_blamed_without_one"] == ["c-1"]
    filtered = result("c-1", "policy.rejected", "policy.rejected", level=0)
    assert judged([filtered], [])["passed"]
    absent = judged([result("d-1", "tls.unknown_ca", "tls.unknown_ca", is_there=False)], [])
    assert (absent["faults"], absent["did_not_show"], absent["passed"]) == (0, ["d-1"], False)


def test_an_interrupted_validation_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = choose_faults(PLANNED, ["policy-default-deny"])
    made: list[str] = []

    def run_fault(planned: PlannedFault, out: Path, manifests: Path) -> FaultRun:
        assert not out.exists()  # what there was of it is gone
        out.mkdir()
        manifests.mkdir()
        made.append(planned.name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return FaultRun(
            name=planned.name,
            cause=planned.fault.cause,
            what=planned.variant.what,
            experiment=planned.experiment,
            mode=planned.mode,
            is_there=True,
            observed=["seen"],
        )

    def diagnose(run_dir: Path) -> list[NamedCause]:
        assert run_dir.is_dir()
        return [NamedCause("policy.default_deny", 0.9)]

    monkeypatch.setattr(suite, "run_fault", run_fault)
    monkeypatch.setattr(suite, "clean_leftovers", list)
    out = tmp_path / "faults"
    with pytest.raises(KeyboardInterrupt):
        suite.run_faults(chosen, LEFT_OUT, out, QuietProgress(), diagnose=diagnose)
    assert not (out / "faults.json").exists()
    with pytest.raises(RunDirError, match="--resume"):
        suite.run_faults(chosen, LEFT_OUT, out, QuietProgress(), diagnose=diagnose)
    assert suite.planned_names(out) == names(chosen)
    handle = os.open(out / LOCK, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(RunDirError, match="another ztprobe validates there"):
        suite.run_faults(chosen, LEFT_OUT, out, QuietProgress(), resumes=True, diagnose=diagnose)
    os.close(handle)
    first_result = out / "results" / f"{names(chosen)[0]}.json"
    whole = first_result.read_text()
    first_result.write_text("{}")
    with pytest.raises(RunDirError, match="is no result of a fault; remove it"):
        suite.run_faults(chosen, LEFT_OUT, out, QuietProgress(), resumes=True, diagnose=diagnose)
    first_result.write_text(whole)
    (out / "runs" / ".policy-default-deny-2.state.123").mkdir()  # of a call that was killed
    content = suite.run_faults(chosen, LEFT_OUT, out, QuietProgress(), resumes=True, diagnose=diagnose)
    first, second, third = names(chosen)
    assert made == [first, second, second, third]
    assert content["passed"]
    assert sorted(entry.name for entry in (out / "runs").iterdir()) == names(chosen)
    assert json.loads((out / "faults.json").read_text()) == content
    assert (out / "observed" / f"{first}.txt").read_text() == "seen\n"
    assert "<svg" in (out / "confusion.svg").read_text()


def test_only_a_beginning_can_be_taken_up(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="could be taken up"):
        suite.planned_names(tmp_path)
    for text in ("[]", '{"runs": 3}', '{"runs": [], "runs": []}', "[" * 5000):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(UsageError, match="could be taken up"):
            suite.planned_names(tmp_path)
    (tmp_path / "plan.json").unlink()
    os.mkfifo(tmp_path / "plan.json")
    with pytest.raises(UsageError, match="could be taken up"):
        suite.planned_names(tmp_path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--healthy"], "--healthy belongs to --faults"),
        (["--resume", "."], "--resume belongs to --faults"),
        (["--faults", "--resume", ".", "--healthy"], "leave out --out, --scenario, --healthy"),
        (["--faults", "--scenario", "policy"], "unknown fault 'policy'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(words: list[str], says: str) -> None:
    outcome = CliRunner().invoke(ztprobe, ["validate", *words])
    assert isinstance(outcome.exception, UsageError)
    assert says in str(outcome.exception)


def test_the_list_names_every_run_and_what_is_left_out() -> None:
    listed = CliRunner().invoke(ztprobe, ["validate", "--faults", "--list"]).output
    for one in PLANNED:
        assert one.name in listed
    for left in LEFT_OUT:
        assert left.cause in listed
    rows = json.loads(CliRunner().invoke(ztprobe, ["validate", "--faults", "--list", "--json"]).output)
    assert [row["name"] for row in rows] == names(PLANNED)


def test_networks_of_faults_are_what_their_profiles_say(tmp_path: Path) -> None:
    for planned in PLANNED:
        spec = spec_of_fault(planned, tmp_path, tmp_path)
        if planned.variant.profile is None:
            assert spec.profile == load_profile(planned.network)
        else:
            assert spec.profile.name.startswith(planned.network)
            assert spec.profile != load_profile(planned.network)
        assert not spec.try_controls


def test_a_fault_is_called_after_its_cause() -> None:
    assert Fault(cause="policy.dns_blocked_udp", variants=()).name == "policy-dns-blocked-udp"
    assert Fault(cause=NOTHING, variants=()).name == "healthy"
