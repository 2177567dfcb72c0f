"""Results outside of the report: DataFrames, files for other programs, tables and figures for papers."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pandas as pd
import pytest

import ztprobe
from analysis.ledger.model import COMPONENTS
from tests.unit.recorded_run import RECORDED
from ztprobe.cli import main
from ztprobe.paths import REPO_DIR


@pytest.fixture(scope="module")
def run():
    return ztprobe.load(RECORDED)


def test_the_page_shows_what_python_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO_DIR)
    failed, tried = doctest.testfile(str(REPO_DIR / "docs" / "results.md"), module_relative=False)
    assert (failed, tried > 4) == (0, True)


def test_components_add_up_to_rounds(run) -> None:
    totals = run.components.groupby("round")["time_s"].sum()
    assert totals.to_numpy() == pytest.approx(run.rounds["duration_s"].to_numpy(), abs=1e-8)


def test_every_number_has_its_unit(run) -> None:
    unitless = {"round", "exchanges", "lost_events", "coverage", "accuracy", "syn_count"}
    unitless |= {"retransmissions", "needless_retransmissions"}
    for name, table in run.tables.items():
        for column in table.select_dtypes("number").columns:
            assert column.endswith("_s") or column in unitless, f"{name}.{column}"


def test_a_run_without_baseline_has_no_overhead() -> None:
    assert ztprobe.load(RECORDED / "baseline").overhead.empty


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ztprobe.errors.RunDirError, match="no run directory"):
        ztprobe.load(tmp_path)


def test_exported_tables_are_the_loaded_ones(run, tmp_path: Path, capsys) -> None:
    assert main(["export", str(RECORDED), "--format", "csv", "--out", str(tmp_path)]) == 0
    assert main(["export", str(RECORDED), "--format", "parquet", "--out", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(run.tables)
    for name, table in run.tables.items():
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / f"{name}.csv"), table, check_dtype=False)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{name}.parquet"), table)


def test_the_latex_table_has_every_shown_part(tmp_path: Path) -> None:
    assert main(["export", str(RECORDED), "--format", "latex", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "components.tex").read_text()
    body = text.partition("\\midrule")[2].partition("\\end{tabular}")[0]
    rows = [line.removesuffix(" \\\\").split(" & ") for line in body.splitlines() if " & " in line]
    assert {len(row) for row in rows} == {5}
    assert [row[0] for row in rows][-2:] == ["residual", "round"]
    assert text.isascii()
    report = json.loads((RECORDED / "report.json").read_text())
    seen = [name for name in COMPONENTS if report["components"][name]["share"]]
    assert len(rows) >= len(seen) + 2


def test_the_figure_is_a_column_wide_and_the_same_every_time(tmp_path: Path) -> None:
    pages = []
    for name in ("one", "two"):
        assert main(["export", str(RECORDED), "--format", "pdf", "--out", str(tmp_path / name)]) == 0
        pages.append((tmp_path / name / "breakdown.pdf").read_bytes())
    assert pages[0] == pages[1]
    assert b"/MediaBox [ 0 0 252 " in pages[0]  # 3.5 inches of 72 points
