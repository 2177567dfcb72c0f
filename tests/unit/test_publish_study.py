"""A finished study put into the tree: the record that reproductions find, the report, the README's part."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from analysis.results import study_rounds
from analysis.results.headline import headline_markdown, headline_rows
from analysis.results.headline_figure import draw_headline
from analysis.results.published_benchmark import PUBLISHED
from analysis.results.reproduction import check_enough
from analysis.results.study import study_report
from analysis.results.study_rounds import StudyRounds, rounds_of_study
from tests.unit.test_reproduction import GROUPS, LIKE, rounds_of
from tests.unit.thousand_runs import write_study
from tools.publish_study import record
from tools.publish_study.__main__ import main
from ztprobe.errors import RunDirError
from ztprobe.paths import REPO_DIR
from ztprobe.profile.model import profile_names
from ztprobe.study.plan import load_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 80 runs of paper-80 as saved runs, generated."""
    out = tmp_path_factory.mktemp("studies") / "paper-80"
    assert write_study(out, 1, load_study("paper-80", profile_names())) == 80
    return out


@pytest.fixture(scope="module")
def tree(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a clone what the program changes, after it has done so."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copy(REPO_DIR / "README.md", tree)
    assert main([str(study)], tree) == 0
    return tree


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_reproduction_finds_the_record(tree: Path, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tree / study_rounds.RECORDS_DIR.relative_to(REPO_DIR)
    monkeypatch.setattr(study_rounds, "RECORDS_DIR", place)
    monkeypatch.chdir(tree)
    found = rounds_of_study("paper-80")
    assert (found.study, found.rounds_planned, len(found.frame)) == ("paper-80", 20, 80 * 19)
    check_enough(found, LIKE, GROUPS)  # or `ztprobe reproduce` would refuse it
    assert (place / "paper-80.parquet").read_bytes() == (study / study_rounds.ROUNDS_FILE).read_bytes()


def test_all_of_it_is_small_and_the_report_is_whole(tree: Path) -> None:
    written = [path for path in tree.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in written) < 20e6
    docs = {path.name for path in (tree / "docs/studies/paper-80").iterdir()}
    assert {"README.md", "headline.svg", "study.html", "study-report.json", "study.csv", "figures"} <= docs


def test_the_readme_shows_what_the_report_says(tree: Path, study: Path) -> None:
    text = (tree / "README.md").read_text()
    block = text.partition(record.BEGIN)[2].partition(record.END)[0]
    rows = {cells_of(line)[0]: cells_of(line) for line in block.splitlines() if line.startswith("| net")}
    report = {group["name"]: group for group in study_report(study)["groups"]}
    assert list(rows) == sorted(report) == list(PUBLISHED)
    shown = headline_rows(rounds_of_study(str(study)))
    for row in shown:
        group = report[row.group]
        assert rows[row.group][1] == "10 of 10"
        assert (row.rounds, row.attempts) == (190, 10)
        assert row.median_s == pytest.approx(group["median_s"], abs=1e-9)
        assert row.median_ci95_s == pytest.approx(group["median_ci95"], abs=1e-9)
        assert row.p99_s == pytest.approx(group["p99_s"], abs=1e-9)
    assert rows["net0-sec0"][4:6] == ["–", "× 1"]
    # As the paper prints its overheads: of the p99 over SEC0 under the same network.
    told = {name: row[9] for name, row in rows.items() if not name.endswith("-sec0")}
    assert told == {
        "net0-sec1": "+15.4 %",
        "net0-sec2": "+26.3 %",
        "net0-sec3": "+34.1 %",
        "net2-sec1": "+13.1 %",
        "net2-sec2": "+18.1 %",
        "net2-sec3": "+21.5 %",
    }
    words = " ".join(block.split())
    assert (
        "2 CPUs, A CPU of a test" in words and "commit 0123456789ab" in words and "data set digits" in words
    )
    for link in re.findall(r"\]\(([^)]+)\)", block):
        assert (tree / link).is_file()


def test_where_it_was_on_this_machine_is_not_told(tree: Path, study: Path) -> None:
    place = str(study).encode()
    assert not [path for path in tree.rglob("*") if path.is_file() and place in path.read_bytes()]


def test_doing_it_again_changes_nothing(tree: Path, study: Path) -> None:
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert main([str(study)], tree) == 0
    assert {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()} == before
    assert (tree / "README.md").read_text().count(record.BEGIN) == 1


def test_a_study_that_is_not_complete_or_too_large_changes_nothing(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "MOST_BYTES", 100_000)
    assert main([str(study)], tmp_path) == RunDirError.exit_code
    assert "a study in the tree has 0.1" in capsys.readouterr().err
    partial = tmp_path / "partial"
    shutil.copytree(study, partial)
    shutil.rmtree(partial / "runs" / "net0-sec0")
    assert main([str(partial)], tmp_path) == RunDirError.exit_code
    assert "1 run missing; `ztprobe sweep` goes on" in capsys.readouterr().err
    assert main([], tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["partial"]


def test_runs_that_others_spoiled_are_counted_and_not_in_the_table() -> None:
    quiet = rounds_of(range(5))
    frame = quiet.frame.copy()
    spoiled = (frame["cell"] == "net2-sec3-s0").to_numpy()
    frame.loc[spoiled, "duration_s"] *= 50
    frame["contended"] = spoiled
    tally = {"planned": 5, "complete": 5, "contended": 1, "attempts": 7}
    rounds = StudyRounds(
        study="x", rounds_planned=20, frame=frame, groups={**quiet.groups, "net2-sec3": tally}
    )
    (row,) = (one for one in headline_rows(rounds) if one.group == "net2-sec3")
    assert (row.rounds, row.contended) == (76, 1)
    assert row.p99_s is None  # of fewer than 100 rounds
    rest = frame[(frame["profile"] == "net2") & (frame["level"] == 3) & ~frame["contended"]]["duration_s"]
    assert row.median_s == pytest.approx(np.median(rest))
    told = " ".join(headline_markdown(rounds).split())
    assert "| net2-sec3 | 5 of 5, 7 attempts |" in told
    assert "2 attempts failed or made anew. 1 run that others disturbed to the last left out." in told
    everything = frame.assign(contended=True)
    with pytest.raises(RunDirError, match="has no quiet run without further factors"):
        headline_rows(StudyRounds(study="x", rounds_planned=20, frame=everything, groups={}))


def test_the_figure_has_every_group_and_is_the_same_again(study: Path) -> None:
    rounds = rounds_of_study(str(study))
    drawn = draw_headline(rounds)
    assert drawn == draw_headline(rounds)
    texts = {text.text for text in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")}
    assert {*PUBLISHED, "published", "median round over that of net0-sec0"} <= texts
    other = pd.DataFrame(rounds.frame).assign(profile="net5")  # that nothing was published of
    texts_of = draw_headline(StudyRounds(study="x", rounds_planned=20, frame=other, groups={}))
    assert "net5-sec0" in texts_of and "published" not in texts_of.replace("that published", "")
