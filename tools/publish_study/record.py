"""What of a study's directory goes into the tree, and where to.

- ``analysis/results/records/NAME.parquet``: every counted round, for `ztprobe reproduce`
- ``docs/studies/NAME/``: the report (page, JSON, tables as CSV, figures), and the short table as README.md
- of the study that the README is about, the short table and the figure there, between two comments

Nothing is written unless the study is complete and all of it together is small enough for a repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.report.wording import plural
from analysis.results.headline import headline_markdown
from analysis.results.headline_figure import draw_headline
from analysis.results.study_page import write_study
from analysis.results.study_rounds import RECORDS_DIR, ROUNDS_FILE, read_rounds
from ztprobe.errors import RunDirError, UsageError
from ztprobe.paths import REPO_DIR
from ztprobe.rundir.store import write_atomically

__all__ = ("BEGIN", "END", "HEADLINE_STUDY", "MOST_BYTES", "publish")

MOST_BYTES = 20_000_000  # of one study, all in all
HEADLINE_STUDY = "paper-80"  # that the README is about
BEGIN = "<!-- the study: make publish-study writes from here -->"
END = "<!-- to here -->"
_HEADING = "## The published benchmark, run again"
_BEFORE = "## Read on"  # where the README has no such comments yet
_FIGURE = "headline.svg"


def publish(study: Path, tree: Path) -> dict[str, int]:
    """Analyse a study again and put what it says into the tree.

    :param study: its directory, as `ztprobe sweep` leaves it.
    :param tree: the clone's root.
    :returns: path below the tree -> bytes, of what was written.
    :raises RunDirError: it is no study, is not complete, or is too large.
    """
    report = write_study(study)
    missing = sum(group["planned"] - group["complete"] for group in report["groups"])
    if missing:
        raise RunDirError(
            f"{study}: {plural(missing, 'run')} missing; `ztprobe sweep` goes on with what is left"
        )
    files = _files(study, report)
    if (size := sum(map(len, files.values()))) > MOST_BYTES:
        raise RunDirError(
            f"{study}: comes to {size / 1e6:.1f} MB, and a study in the tree has {MOST_BYTES / 1e6:g}"
        )
    if report["study"] == HEADLINE_STUDY:
        files[Path("README.md")] = _readme(
            tree / "README.md", files[_below_docs(report) / "README.md"].decode()
        )
    for path, content in files.items():
        write_atomically(tree / path, content)
    return {str(path): len(content) for path, content in files.items()}


def _below_docs(report: dict[str, Any]) -> Path:
    return Path("docs/studies", report["study"])


def _files(study: Path, report: dict[str, Any]) -> dict[Path, bytes]:
    record = (study / ROUNDS_FILE).read_bytes()
    rounds = read_rounds(study / ROUNDS_FILE)
    docs = _below_docs(report)
    table = headline_markdown(rounds)
    of_report = ["study.html", "study-report.json", *(path.name for path in study.glob("study*.csv"))]
    figures = [f"figures/{path.name}" for path in (study / "figures").glob("*.svg")]
    files = {
        docs / name: _without_place((study / name).read_bytes(), study, report["study"])
        for name in sorted(of_report + figures)
    }
    files[docs / _FIGURE] = draw_headline(rounds).encode()
    files[docs / "README.md"] = _page(report["study"], table).encode()
    files[RECORDS_DIR.relative_to(REPO_DIR) / f"{report['study']}.parquet"] = record
    return files


def _without_place(content: bytes, study: Path, name: str) -> bytes:
    """A file of the report without where on this machine the study was."""
    for place in (str(study.absolute()), str(study)):
        content = content.replace(place.encode(), name.encode())
    return content


def _page(name: str, table: str) -> str:
    title = "A round's components by network and level, and medians over that of net0-sec0"
    return f"# The study {name}\n\n![{title}]({_FIGURE})\n\n{table}"


def _readme(file: Path, page: str) -> bytes:
    """The README with the study's page between its comments, links leading to where its files are."""
    text = file.read_text()
    place = f"docs/studies/{HEADLINE_STUDY}"
    shown = page.partition("\n\n")[2].replace(f"]({_FIGURE})", f"]({place}/{_FIGURE})")
    more = f"[The whole report]({place}/README.md); `ztprobe reproduce` holds new runs against this one."
    block = f"{BEGIN}\n{shown}\n{more}\n{END}\n"
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        return (before + block + rest.partition(f"{END}\n")[2]).encode()
    if _BEFORE not in text:
        raise UsageError(f"{file}: has neither '{BEGIN}' nor a heading '{_BEFORE}' to put the study before")
    return text.replace(_BEFORE, f"{_HEADING}\n\n{block}\n{_BEFORE}", 1).encode()
