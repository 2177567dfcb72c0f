"""What a user sees and keeps: the table, JSON, the page, and the same again from the saved run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.command import run, unprivileged
from tests.e2e.conftest import Traced
from tests.schemas import problems
from ztprobe.paths import REPO_DIR


@pytest.fixture
def nobody_s_copy(traced: Callable[[str], Traced], tmp_path: Path) -> Path:
    """A run with its baseline, not analysed yet, that belongs to somebody without rights."""
    copy = tmp_path / "copy of a run"
    shutil.copytree(traced("net0-sec3").path, copy, ignore=shutil.ignore_patterns("report.*", "figures"))
    for place in (copy, *copy.rglob("*")):
        shutil.chown(place, 65534, 65534)
    for parent in copy.parents[:3]:
        parent.chmod(0o755)
    return copy


def test_analysing_again_without_root_gives_the_same_bytes(
    traced: Callable[[str], Traced], nobody_s_copy: Path
) -> None:
    outcome = run("report", nobody_s_copy, prefix=unprivileged(), env={"TZ": "Asia/Tokyo", "LC_ALL": "C"})
    assert (outcome.status, outcome.stderr) == (0, "")
    original = traced("net0-sec3").path
    names = sorted(p.name for p in (original / "figures").iterdir())
    assert names
    for name in ("report.json", "report.html", *(f"figures/{name}" for name in names)):
        assert (nobody_s_copy / name).read_bytes() == (original / name).read_bytes(), name
    assert (nobody_s_copy / "report.json").stat().st_uid == 65534


def test_a_run_that_may_only_be_read_is_refused_in_one_line(nobody_s_copy: Path) -> None:
    for place in (nobody_s_copy, *nobody_s_copy.rglob("*")):
        shutil.chown(place, 0, 0)
    outcome = run("report", nobody_s_copy, prefix=unprivileged())
    outcome.assert_refused(4, str(nobody_s_copy), "cannot be written")


def test_the_table_fits_and_says_it_all(traced: Callable[[str], Traced]) -> None:
    one = traced("net0-sec0")
    lines = one.outcome.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in one.outcome.stdout + one.outcome.stderr
    for start in (
        "server",
        "compute",
        "propagation",
        "transmission",
        "residual",
        "round",
        "connection set-up",
    ):
        assert any(line.startswith(start) for line in lines), start
    for start in ("coverage", "network policy", "mutual TLS", "emulated", "training time"):
        assert any(line.startswith(start) for line in lines), start
    assert " ".join(one.report["diagnosis"].split()) in " ".join(one.outcome.stdout.split())
    progress = one.outcome.stderr
    assert [f"round {k} of 4" in progress for k in (1, 2, 3, 4)] == [True] * 4
    for signal in one.report["hooks"]:
        assert signal in progress


def test_json_is_all_that_is_printed(traced: Callable[[str], Traced]) -> None:
    one = traced("net0-sec3")
    assert one.outcome.stdout == (one.path / "report.json").read_text()
    again = run("report", "--json", one.path, traced("net0-sec0").path)
    assert (again.status, again.stderr) == (0, "")
    assert json.loads(again.stdout) == [one.report, traced("net0-sec0").report]


@pytest.mark.parametrize(
    "name",
    [
        "net0-sec3",
        "net0-sec0 --fl-secure-aggregation masks",
        "net0-sec1 --fl-edges 2 --fl-compression int8",
    ],
)
def test_report_json_fits_its_schema(traced: Callable[[str], Traced], name: str) -> None:
    assert problems("report", traced(name).report) == []


def test_report_json_keeps_its_contract(traced: Callable[[str], Traced]) -> None:
    report = traced("net0-sec3").report
    assert report["schema_version"] == 1
    assert (report["experiment"], report["runtime"]) == ("net0-sec3", "local")
    for r in report["rounds"]:
        assert {"round", "duration_s", "critical_client", "components", "residual_s"} <= set(r)
    for component in report["components"].values():
        assert {"median_s", "p99_s", "share"} <= set(component)
        assert component["p99_s"] is None, "from fewer than 100 rounds"
    assert set(report["overhead"]["duration"]) >= {"delta_s", "ci95"}
    assert set(report["overhead"]["components"]) == set(report["components"])
    assert {"profile", "backend", "requested", "measured"} <= set(report["emulation"])
    assert {"network_policy", "mtls"} <= set(report["enforcement"])
    for probe in report["probes"]:
        assert {"signal", "hook", "run_count", "run_time_ns"} <= set(probe)
    assert sum(probe["run_count"] for probe in report["probes"]) > 0


def test_the_page_fetches_nothing(traced: Callable[[str], Traced]) -> None:
    for name in ("net0-sec0", "net0-sec3"):
        page = (traced(name).path / "report.html").read_text()
        # XML's namespaces are names, and so are the pods' identities.
        addresses = set(re.findall(r"""(?<!spiffe:)//[^\s"'<>)]+""", page))
        assert {
            a for a in addresses if not re.match(r"//(www\.w3\.org|purl\.org|creativecommons)", a)
        } == set()
        assert not re.search(r"\bsrc\s*=|@import|<link\b|url\((?!#)", page)
        for client in ("fl-client-0", "fl-client-1", "fl-client-2"):
            assert client in page


def test_doctor_says_that_the_main_job_can_run() -> None:
    outcome = run("doctor", "--json")
    assert (outcome.status, outcome.stderr) == (0, "")
    verdict = json.loads(outcome.stdout)
    assert verdict["can_run"] is True
    assert verdict["problems"] == []
    assert all(signal["hook"] for signal in verdict["signals"])
    plain = run("doctor")
    assert plain.status == 0
    assert max(map(len, plain.stdout.splitlines())) <= 100
    assert plain.stdout.splitlines()[-1] == "The main job can run."


def test_doctor_without_root_says_so() -> None:
    outcome = run("doctor", "--json", prefix=unprivileged())
    assert outcome.status == 3
    assert outcome.stderr == ""
    assert any("not root" in problem for problem in json.loads(outcome.stdout)["problems"])


def test_a_second_make_trace_installs_nothing(tmp_path: Path) -> None:
    def plan(venv: Path) -> str:
        command = [
            "make",
            "--no-print-directory",
            "-n",
            "trace",
            f"VENV={venv}",
            "EXPERIMENT=net1-sec2",
            "ARGS=--rounds 7",
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPO_DIR).stdout

    assert "pip install" in plan(tmp_path)
    (tmp_path / ".setup-stamp").touch()
    expected = f"{tmp_path}/bin/python -m ztprobe trace --experiment net1-sec2 --rounds 7"
    assert plan(tmp_path).splitlines() == [expected]
