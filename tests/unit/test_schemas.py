"""The JSON Schemas that are shipped: they hold of what is written, and of nothing else."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from analysis.ledger.model import COMPONENTS, SUB_ROWS
from analysis.load import load_analysed
from analysis.report.report import REPORT_SCHEMA_VERSION, build_report
from analysis.results.comparison import COMPARISON_SCHEMA_VERSION, compare
from analysis.results.reproduction import REPRODUCTION_SCHEMA_VERSION
from analysis.results.samples import PARTS
from analysis.results.study import STUDY_REPORT_SCHEMA_VERSION
from tests.schemas import SCHEMAS, problems, schema
from tests.unit.recorded_run import RECORDED, recorded, truth
from tests.unit.synthetic_run import START_NS, make_ledger, make_run
from tests.unit.test_compare import group
from tests.unit.test_conditions import a_change, an_other, moving
from tests.unit.test_contention import drifting, on_nodes, pair
from tests.unit.test_contention import recorded as on_a_recorded_machine
from tests.unit.test_ledger_coverage import withheld_report
from tests.unit.test_report_workload import EVENTS
from ztprobe.cli import main
from ztprobe.cli.entry import ztprobe
from ztprobe.rundir.schema import LOSS_CHANNELS
from ztprobe.rundir.store import SCHEMA_VERSION
from ztprobe.runtime.interface import WorkloadOptions

FAILED = RECORDED.parent / "failed"  # runs that have no report
RUNS = sorted(path.parent for path in RECORDED.parent.rglob("run.json") if FAILED not in path.parents)
# Objects whose names are not the same in every run, and fields that older runs lack.
OPTIONAL = {
    "settings", "options", "versions", "hooks", "critical_clients", "emulation/requested",
    "emulation/measured", "connection_setup/components", "connection_setup/clients/0/components",
    *(f"rounds/0/sub_rows{'/' if name else ''}{name}" for name in ("", *SUB_ROWS)),
}  # fmt: skip
OPTIONAL_FIELDS = {
    "emulation/details", "emulation/stats", "probes/0/program", "probes/0/recursion_missed",
    "rounds/0/clients/0/marks", "rounds/0/clients/0/down_bytes", "rounds/0/clients/0/up_bytes",
}  # fmt: skip
# Whatever stands in there is somebody else's: described as such, and not pinned.
OPEN = ("facts", "emulation/stats", "enforcement/details")


@functools.cache
def report_of(run: Path) -> dict[str, Any]:
    analysed = load_analysed(run)
    return build_report(analysed.run, analysed.ledger, analysed.baseline)


def contended() -> dict[str, Any]:
    return pair({"foreign": 0.25, "steal": 0.1, "memory": 0.1}, slower_by=1.3)


def contended_on_one_of_its_nodes() -> dict[str, Any]:
    run, ledger = on_nodes(make_ledger(), alpha=0.001, beta=0.3, gamma=None)
    return build_report(run, ledger, on_nodes(ledger, alpha=0.0, beta=0.0, gamma=0.0))


def with_drift() -> dict[str, Any]:
    baseline = on_a_recorded_machine(make_ledger(rounds=12, seed=9))
    return build_report(*on_a_recorded_machine(drifting(0.8)), baseline)


def with_options_and_a_p99() -> dict[str, Any]:
    ledger = make_ledger(rounds=101)
    run = make_run(ledger=ledger, agent_memory={"resident_bytes": 9, "kernel_maps_bytes": 8})
    run.rounds.extend(EVENTS)
    return build_report(run, ledger, None)


def with_a_changing_network() -> dict[str, Any]:
    run = moving(a_change(0, 0, delay_ms=35.0), a_change(None, 1, error="pod-a: gone"), a_change(10, 0))
    run.meta["emulation"]["others"] = [an_other(1, None, a_change(1, 0, delay_ms=20.0))]
    late = {"from_ns": START_NS, "to_ns": START_NS + 10**9, "worst_ns": 5, "packets": 9}
    counted = {"interface": "eth0", "kind": "tbf", "packets": 7, "drops": 1, "overlimits": 2}
    several = counted | {"others": [counted | {"interface": "lo", "kind": "netem"}]}
    run.meta["emulation"]["observed"] = {"fl-server": counted, "fl-client-0": None, "fl-client-1": several}
    run.meta["emulation"]["stats"] = {"delay_line": {"late": {"worst_ns": 5, "spans": [late]}}}
    return build_report(run, make_ledger(), None)


def with_every_round_withheld() -> dict[str, Any]:
    windows = [(one.start_ns, one.start_ns + one.duration_ns) for one in truth().rounds]
    report = withheld_report(recorded(), windows, *range(len(windows)))
    assert report["rounds_counted"] == 0 and report["loss_log"]
    return dict(report)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("report", REPORT_SCHEMA_VERSION),
        ("comparison", COMPARISON_SCHEMA_VERSION),
        ("study-report", STUDY_REPORT_SCHEMA_VERSION),
        ("reproduction", REPRODUCTION_SCHEMA_VERSION),
        ("run", SCHEMA_VERSION),
    ],
)
def test_it_is_of_the_version_that_is_written(name: str, version: int) -> None:
    assert schema(name)["properties"]["schema_version"]["const"] == version
    assert schema(name)["$id"] == f"urn:ztprobe:{name}:{version}"


@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.relative_to(RECORDED.parent)))
def test_reports_of_recorded_runs_fit(run: Path) -> None:
    assert problems("report", report_of(run)) == []


@pytest.mark.parametrize(
    "build",
    [
        contended,
        contended_on_one_of_its_nodes,
        with_drift,
        with_options_and_a_p99,
        with_a_changing_network,
        with_every_round_withheld,
    ],
)
def test_reports_with_what_no_recorded_run_has_fit(build: Callable[[], dict[str, Any]]) -> None:
    assert problems("report", build()) == []


def objects(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from objects(one, f"{path}/{key}".lstrip("/"))


@pytest.fixture
def small() -> dict[str, Any]:
    """A whole report with one of each thing that there are several of."""
    found = copy.deepcopy(report_of(RECORDED))
    found["rounds"], found["probes"] = found["rounds"][1:2], found["probes"][:1]
    found["rounds"][0]["clients"] = found["rounds"][0]["clients"][:1]
    found["rounds"][0]["clients"][0]["segments"] = found["rounds"][0]["clients"][0]["segments"][:1]
    found["connection_setup"]["clients"] = found["connection_setup"]["clients"][:1]
    found["emulation"]["details"]["directions"] = found["emulation"]["details"]["directions"][:1]
    for control in ("network_policy", "mtls"):
        found["enforcement"][control]["proofs"] = found["enforcement"][control]["proofs"][:1]
    assert problems("report", found) == []
    return found


def test_a_missing_field_is_refused(small: dict[str, Any]) -> None:
    validator = Draft202012Validator(schema("report"))
    tried = 0
    for path, one in objects(small):
        if path in OPTIONAL or path.startswith(OPEN):
            continue
        for key in sorted(one):
            if f"{path}/{key}".lstrip("/") in OPTIONAL_FIELDS:
                continue
            value = one.pop(key)
            assert not validator.is_valid(small), f"{path}/{key} may be missing"
            one[key] = value
            tried += 1
    assert tried > 400
    assert validator.is_valid(small)


def test_a_field_that_is_not_described_is_refused(small: dict[str, Any]) -> None:
    validator = Draft202012Validator(schema("report"))
    for path, one in objects(small):
        if path.startswith(OPEN):
            continue
        one["surprise"] = ["of a kind that no map of names holds"]
        assert not validator.is_valid(small), f"{path}/surprise may be there"
        del one["surprise"]
    assert validator.is_valid(small)


def test_a_value_of_another_kind_is_refused(small: dict[str, Any]) -> None:
    validator = Draft202012Validator(schema("report"))
    for path, one in objects(small):
        if path.startswith(OPEN):
            continue
        for key, value in list(one.items()):
            if not isinstance(value, dict):
                one[key] = {"seconds": 1}
                assert not validator.is_valid(small), f"{path}/{key} may be anything"
                one[key] = value
    assert validator.is_valid(small)


# Add constraints to fields that are described elsewhere.
CONSTRAINTS = (
    "/$defs/by_sub_row", "/$defs/machine_in_run/if", "/properties/groups/items/properties/parts",
    "/$defs/overhead/properties/parts", "/properties/emulation/properties/schedule/if",
    "/properties/emulation/properties/schedule/then",
)  # fmt: skip


def fields(part: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(part, dict) and path not in CONSTRAINTS:
        for name, field in part.get("properties", {}).items():
            yield f"{path}/{name}", field
        for key, one in part.items():
            yield from fields(one, f"{path}/{key}")
    elif isinstance(part, list):
        for number, one in enumerate(part):
            yield from fields(one, f"{path}/{number}")


UNITS = {
    "s": "second", "ns": "nanosecond", "ms": "millisecond", "pct": "per cent", "mbit": "Mbit/s", "mhz": "MHz",
    "bytes": "bytes", "share": "fraction of 1",
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_field_is_described_with_its_unit(name: str) -> None:
    described = 0
    for path, field in fields(schema(name)):
        described += len(field["description"]) > 0
        stem, _, unit = path.rpartition("/")[2].rpartition("_")
        if stem and unit in UNITS:
            assert UNITS[unit] in field["description"], path
    assert described > 20


def test_names_are_those_of_the_code() -> None:
    found = schema("report")
    assert found["$defs"]["component"]["enum"] == list(COMPONENTS)
    assert list(found["$defs"]["by_component"]["properties"]) == list(COMPONENTS)
    rows = found["$defs"]["sub_row_names"]["properties"]
    assert {name: tuple(part["properties"]) for name, part in rows.items()} == SUB_ROWS
    assert list(found["properties"]["loss"]["properties"]) == list(LOSS_CHANNELS)
    options = {field.name for field in dataclasses.fields(WorkloadOptions)}
    assert set(found["properties"]["options"]["properties"]) == options
    assert schema("comparison")["$defs"]["by_part"]["required"] == list(PARTS)


def test_comparisons_fit_and_others_do_not() -> None:
    one, other, several = group([1.0]), group([1.2], seed=2), group([1.2, 1.3], seed=2)
    for groups in ([one, other], [one, several], [several, group([1.0, 1.1])]):
        assert problems("comparison", compare(groups)) == []
    paired = compare([several, group([1.0, 1.1])], paired=True)
    assert problems("comparison", paired | {"pairs": 2, "order_seed": 1, "stopped_at": 0.05}) == []
    validator = Draft202012Validator(schema("comparison"))
    for path, found in objects(paired):
        for key in sorted(found):
            value = found.pop(key)
            assert not validator.is_valid(paired), f"{path}/{key} may be missing"
            found[key] = value
        found["surprise"] = 1.0
        assert not validator.is_valid(paired), f"{path}/surprise may be there"
        del found["surprise"]
    assert validator.is_valid(paired)


COMMANDS = [
    ("report", "report"), ("compare", "comparison"), ("sweep", "study-report"), ("reproduce", "reproduction"),
    ("trace", "run"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "name"), COMMANDS)
def test_the_command_prints_it_and_needs_no_run(command: str, name: str) -> None:
    done = CliRunner().invoke(ztprobe, [command, "--schema"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == schema(name)


def test_an_installation_without_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resources, "files", lambda _package: tmp_path)
    assert main(["report", "--schema"]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "report.schema.json is missing" in said
