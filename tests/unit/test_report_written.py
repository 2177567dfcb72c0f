"""What writing a report leaves in a run: report.json, the page and its figures."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis.ledger.model import Ledger
from analysis.report.report import write_report
from tests.unit.synthetic_run import baseline_pair, make_ledger, save_run
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import Run


@pytest.fixture
def ledgers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Ledger]:
    """Ledgers by experiment, given instead of built ones."""
    by_name: dict[str, Ledger] = {"net2-sec3": make_ledger(), "net0-sec0": baseline_pair()[1]}

    def build_ledger(run: Run) -> Ledger:
        return by_name[run.name]

    monkeypatch.setattr("analysis.ledger.ledger.build_ledger", build_ledger)
    # The synthetic run has no events to look for causes in.
    nothing = {"troubles": [], "causes": [], "dropped_by_filter": 0}
    monkeypatch.setattr("analysis.causes.diagnosis.diagnose_run", lambda run: nothing)
    return by_name


class Page(HTMLParser):
    """What a page refers to and which ids it defines."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "srcset"):
                self.references.append(value or "")


def test_wide_tables_can_be_scrolled_by_keyboard_and_are_whole_on_paper(
    tmp_path: Path, ledgers: dict[str, Ledger]
) -> None:
    path = save_run(tmp_path / "run")
    save_run(path / "baseline", "net0-sec0", ledgers["net0-sec0"])
    write_report(path)
    page = (path / "report.html").read_text()
    assert (
        page.count('<div class="scroll"') == page.count('role="region" aria-label="table" tabindex="0"') > 5
    )
    on_paper = page.partition("@media print")[2].partition("</style>")[0]
    assert ".scroll { overflow: visible" in on_paper
    assert "position: sticky" in page.partition("@media (max-width")[2].partition("@media print")[0]


def test_a_saved_run_becomes_a_whole_report(tmp_path: Path, ledgers: dict[str, Ledger]) -> None:
    path = save_run(tmp_path / "run")
    save_run(path / "baseline", "net0-sec0", ledgers["net0-sec0"])
    report = write_report(path)
    assert json.loads((path / "report.json").read_text()) == report
    assert report["overhead"]["baseline"] == "net0-sec0"
    assert sorted(one.name for one in (path / "figures").iterdir()) == [
        "breakdown.svg", "clients.svg", "overhead.svg", "rounds.svg",
    ]  # fmt: skip
    html = (path / "report.html").read_text()
    page = Page(html)
    assert all(one.startswith("#") for one in page.references)
    assert "http" not in html.replace("http-equiv", "")
    assert "url(/" not in html
    assert len(page.ids) == len(set(page.ids))
    assert {one[1:] for one in page.references} <= set(page.ids)
    assert not page.tags & {"link", "img", "iframe", "image"}
    assert report["diagnosis"] in html
    assert str(tmp_path) not in html


def test_analysing_again_gives_the_same_bytes(tmp_path: Path, ledgers: dict[str, Ledger]) -> None:
    first, second = save_run(tmp_path / "one"), save_run(tmp_path / "two")
    save_run(first / "baseline", "net0-sec0", ledgers["net0-sec0"])
    save_run(second / "baseline", "net0-sec0", ledgers["net0-sec0"])

    def written(path: Path) -> dict[str, bytes]:
        write_report(path)
        names = [
            "report.json",
            "report.html",
            *sorted(f"figures/{one.name}" for one in (path / "figures").iterdir()),
        ]
        return {name: (path / name).read_bytes() for name in names}

    once = written(first)
    assert written(first) == once == written(second)
    assert once["report.json"].endswith(b"}\n")


def test_an_analysis_that_ends_early_writes_nothing(
    tmp_path: Path, ledgers: dict[str, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.report.html.render_page", interrupted)
    save_run(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before


def test_recorded_text_cannot_become_markup(tmp_path: Path, ledgers: dict[str, Ledger]) -> None:
    ledgers["net2-sec3"] = make_ledger(notes=("<script>alert(1)</script>",))
    path = save_run(tmp_path / "run", kernel="<b>6.18</b>")
    write_report(path)
    html = (path / "report.html").read_text()
    assert "<script>alert" not in html
    assert "<b>" not in html
    assert "&lt;b&gt;6.18" in html


def test_a_damaged_baseline_is_named(tmp_path: Path, ledgers: dict[str, Ledger]) -> None:
    path = save_run(tmp_path / "run")
    (path / "baseline").mkdir()
    with pytest.raises(RunDirError, match=r"baseline: run\.json is missing"):
        write_report(path)
    assert not (path / "report.json").exists()


def test_events_that_do_not_fit_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_ledger(run: Run) -> Ledger:
        raise ValueError("round 3: 5 ns of components in 4 ns\nand more")

    monkeypatch.setattr("analysis.ledger.ledger.build_ledger", build_ledger)
    # The synthetic run has no events to look for causes in.
    nothing = {"troubles": [], "causes": [], "dropped_by_filter": 0}
    monkeypatch.setattr("analysis.causes.diagnosis.diagnose_run", lambda run: nothing)
    with pytest.raises(RunDirError, match=r"do not fit together: round 3: 5 ns of components in 4 ns$"):
        write_report(save_run(tmp_path / "run"))
