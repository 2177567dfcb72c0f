"""Whatever others wrote is shown without doing anything to who looks at it, and without giving files away."""

from __future__ import annotations

import io
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from analysis.report.figures import draw_figures
from analysis.report.html import render_page
from analysis.report.pages import page_environment
from analysis.report.text_report import print_report
from ztprobe.cli import main
from ztprobe.cli.rendering.profile import table
from ztprobe.errors import UsageError
from ztprobe.paths import REPO_DIR
from ztprobe.printable import LONGEST, escape_json, printable, printable_lines
from ztprobe.profile.model import load_profile
from ztprobe.progress import LiveProgress, PlainProgress
from ztprobe.rundir.store import dump_json

RECORDED = Path(__file__).parents[1] / "data" / "net2-sec3" / "report.json"
EVIL = "\x1b]0;owned\x07\x9b31m\u202etxt.exe\udc9b\ufffe[red]$x^$<b>\r\x00"
UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)


@given(st.text())
@example(EVIL)
def test_nothing_unshown_is_left(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert "\n" not in shown
    assert len(printable_lines(text).split("\n")) == len(text.split("\n"))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@example(EVIL.replace("\udc9b", "\U000e0001"))
def test_json_says_the_same(text: str) -> None:
    shown = escape_json(json.dumps({text: text}, ensure_ascii=False, indent=1))
    assert json.loads(shown) == {text: text}
    assert not UNSHOWN.search(shown)


def test_words_stay_as_they_are() -> None:
    for text in ("", "80 ± 20 ms × 3 … µs", "Übertragung 転送", "a\\nb"):
        assert printable(text) == text
    assert printable("80\N{NO-BREAK SPACE}ms\tlate") == "80 ms late"


def test_the_middle_of_what_is_too_long_is_left_out() -> None:
    shown = printable("begin" + "x" * 300_000_000 + "end")
    assert len(shown) < LONGEST + 100
    assert shown.startswith("begin")
    assert shown.endswith("end")
    assert "299,998,0" in shown
    lines = printable_lines("a\n" * 1_000_000)
    assert "999,8" in lines.splitlines()[-1]
    assert len(lines) < 5000


def _spoilt(report: Any) -> Any:
    """Every name and sentence of a report with something evil in it."""
    known = {"net2", "none", "nfqueue", "normal", "yes", "no"}

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(each, key) for each in value]
        return value + EVIL if isinstance(value, str) and value not in known else value

    return spoil(report)


def test_a_report_of_a_hostile_run_is_harmless_everywhere() -> None:
    report = _spoilt(json.loads(RECORDED.read_text()))
    terminal = io.StringIO()
    print_report(report, terminal, colour=False)
    assert "owned" in terminal.getvalue()
    figures = draw_figures(report)
    for text in (terminal.getvalue(), *figures.values(), page := render_page(report, figures)):
        assert not UNSHOWN.search(text)
    for svg in figures.values():
        ElementTree.fromstring(svg)
    assert "<b>" not in page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert not UNSHOWN.search(dump_json({"name": EVIL.replace("\udc9b", "")}).decode())


@pytest.mark.parametrize("columns", [40, 56, 72, 80, 99, 100, 200])
def test_a_terminal_that_is_narrower_keeps_its_rows(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(columns))
    report = json.loads(RECORDED.read_text())
    terminal, pipe = Terminal(), io.StringIO()
    print_report(report, terminal, colour=False)
    print_report(report, pipe, colour=False)
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= max(56, min(columns, 100))
    if columns >= 100:
        assert terminal.getvalue() == pipe.getvalue()
    overhead = report["overhead"]["duration"]
    assert overhead["ci95"] is not None
    (interval,) = {
        word
        for line in pipe.getvalue().splitlines()
        if line.startswith("round ")
        for word in [line[-24:].strip()]
    }
    assert any(line.startswith("round ") and line.rstrip().endswith(interval) for line in lines)
    assert sum(line.startswith("transmission ") for line in lines) == (1 if columns >= 98 else 2)


def test_messages_tables_and_progress_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--experiment", f"net0-sec0-{EVIL}"]) == 2
    assert main(["report", f"/nonexistent/{EVIL.replace(chr(0), '')}"]) == 4
    table(("column",), [(EVIL,), ("[/nothing]",)])
    stream = io.StringIO()
    for progress in (PlainProgress(stream), LiveProgress(stream)):
        with progress:
            progress.stage(EVIL, EVIL)
            progress.done(EVIL)
            progress.note(EVIL)
    out, err = capsys.readouterr()
    assert "owned" in out
    assert "[/nothing]" in out
    assert not UNSHOWN.search(out + err + stream.getvalue())
    assert len(err.splitlines()) == 2


EVIL_TEXT = EVIL.replace("\udc9b", "").replace("\0", "")


@pytest.fixture
def evil_objects(tmp_path: Path) -> str:
    pods = [
        {
            "kind": "Pod",
            "metadata": {"name": f"{EVIL_TEXT}{n}", "namespace": EVIL_TEXT, "labels": {"a": EVIL_TEXT}},
        }
        for n in range(3)
    ]
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": EVIL_TEXT, "namespace": EVIL_TEXT},
        "spec": {"podSelector": {"matchLabels": {"app": EVIL_TEXT}}},
    }
    unplaced = policy | {"metadata": {"name": f"{EVIL_TEXT}-unplaced"}}
    items = [*({"apiVersion": "v1", **pod} for pod in pods), policy, unplaced]
    (tmp_path / "objects.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return str(tmp_path / "objects.json")


@pytest.mark.parametrize(
    "words",
    [
        ["check"],
        ["matrix"],
        ["matrix", "--json"],
        [
            "explain",
            "--port",
            "1/TCP",
            "--from",
            f"{EVIL_TEXT}/{EVIL_TEXT}0",
            "--to",
            f"{EVIL_TEXT}/{EVIL_TEXT}1",
        ],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_names_in_objects_are_harmless(
    evil_objects: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["policy", words[0], "-f", evil_objects, *words[1:]])
    printed = capsys.readouterr()
    assert "owned" in printed.out
    assert not UNSHOWN.search(printed.out + printed.err)


def test_many_names_are_all_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A long result is not a long message: nothing is left out of it."""
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod-{n}-x", "namespace": "fl", "labels": {"n": str(n)}},
        }
        for n in range(300)
    ]
    policies = [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": f"p{n}", "namespace": "fl"},
            "spec": {
                "podSelector": {"matchLabels": {"n": str(n)}},
                "ingress": [{"ports": [{"port": n + 1}]}],
            },
        }
        for n in range(300)
    ]
    (tmp_path / "objects.json").write_text(
        json.dumps({"apiVersion": "v1", "kind": "List", "items": pods + policies})
    )
    assert main(["policy", "matrix", "-f", str(tmp_path / "objects.json")]) == 0
    printed = capsys.readouterr().out
    assert "left out" not in printed
    assert all(f"pod-{n}-x" in printed for n in range(300))


def test_every_page_lets_nothing_in(evil_objects: str, tmp_path: Path) -> None:
    """Whatever stands in a page that we write, it loads and sends nothing."""
    pages = [path for package in ("analysis", "ztprobe") for path in (REPO_DIR / package).rglob("*.html.j2")]
    pages = [page for page in pages if "<html" in page.read_text()]
    assert len(pages) == 4
    assert main(["policy", "matrix", "-f", evil_objects, "--html", str(tmp_path / "reach.html")]) == 0
    for page in (*pages, tmp_path / "reach.html"):
        text = page.read_text()
        policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
        assert policy is not None, page
        words = page_environment().from_string(policy[1]).render()
        assert words.startswith("default-src 'none'; ") and "base-uri 'none'; form-action 'none'" in words
        assert "unsafe-inline" not in words.partition("script-src")[2]
        assert not UNSHOWN.search(text)


def test_a_comparison_of_hostile_runs_is_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = _spoilt_name(json.loads(RECORDED.read_text()))
    runs = []
    for number in range(2):
        run = tmp_path / f"run{number}"
        run.mkdir()
        (run / "run.json").touch()
        (run / "report.json").write_text(json.dumps(report))
        runs.append(str(run))
    assert main(["compare", *runs, "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "comparison.html").read_text()
    printed = capsys.readouterr().out
    assert "owned" in printed and "owned" in page
    assert not UNSHOWN.search(page + printed)
    assert "<b>" not in page and page.count("<script") == 1  # the page's own
    assert main(["export", runs[0], "--format", "latex", "--out", str(tmp_path / "out")]) == 0
    assert main(["export", runs[0], "--format", "pdf", "--out", str(tmp_path / "out")]) == 0
    latex = (tmp_path / "out" / "components.tex").read_text()
    assert r"\textbackslash{}input\{/etc/passwd\}" in latex
    assert not UNSHOWN.search(latex)


def _spoilt_name(report: Any) -> Any:
    return report | {"experiment": rf'net2\input{{/etc/passwd}}"><script>{EVIL_TEXT}'}


def test_a_report_that_never_ends_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    os.mkfifo(tmp_path / "run" / "report.json")
    assert main(["compare", str(tmp_path / "run"), str(tmp_path / "run")]) == 4
    (tmp_path / "run" / "report.json").unlink()
    (tmp_path / "run" / "report.json").symlink_to("/dev/zero")
    assert main(["export", str(tmp_path / "run"), "--format", "csv", "--out", str(tmp_path / "out")]) == 4
    assert len(capsys.readouterr().err.splitlines()) == 2


SECRET = "hunter2:$y$j9T$salt:20000:0:99999"


@pytest.mark.parametrize(
    "text",
    [
        f"root:{SECRET}\nnobody:*:1\n",
        f"root:\n  - {SECRET}\n",
        f"- {SECRET}\n",
        f"[a, *{SECRET}]",
        f"a: &{SECRET} 1\nb: !{SECRET} 2\n",
        f'"{SECRET}": "\\q"',
        f"{SECRET} {{",
        SECRET,
    ],
)
def test_a_file_that_is_no_profile_is_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "shadow").write_text(text)
    with pytest.raises(UsageError) as refused:
        load_profile(str(tmp_path / "shadow"))
    assert "hunter2" not in str(refused.value)
    assert "shadow:" in str(refused.value)


@pytest.mark.parametrize(
    "named",
    [
        "schedule: {trace_file: NAME}\nsource: {schedule: me}",
        "distribution: samples\nsamples_file: NAME\nsource: {samples: me}",
    ],
)
@pytest.mark.parametrize(
    "text", [SECRET, f"time_s,delay_ms\n0,1\n{SECRET},2\n", f"time_s,delay_ms\n0,{SECRET}\n"]
)
def test_a_file_elsewhere_is_not_shown(tmp_path: Path, named: str, text: str) -> None:
    (tmp_path / "shadow").write_text(text)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "shadow")
    for name in ("../shadow", "link", str(tmp_path / "shadow")):
        profile = tmp_path / "mine" / "profile.yaml"
        profile.write_text(f"name: mine\ndescription: d\n{named.replace('NAME', name)}\n")
        with pytest.raises(UsageError) as refused:
            load_profile(str(profile))
        assert "hunter2" not in str(refused.value)
        assert re.search(r"(shadow|link):\d: .*expected", str(refused.value))
    os.replace(tmp_path / "shadow", tmp_path / "mine" / "own")
    profile.write_text(f"name: mine\ndescription: d\n{named.replace('NAME', 'own')}\n")
    with pytest.raises(UsageError, match=r"found '?(hunter2|time_s)"):
        load_profile(str(profile))
