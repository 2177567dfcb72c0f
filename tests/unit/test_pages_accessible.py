"""Pages as WCAG 2.2 AA asks: contrast, text alternatives, headers, headings in order; and tables that sort.

What a browser makes of them is tried where there is one (chromium).
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from analysis.report.figures import _SLACK_SHADES, INK, draw_figures, shade
from analysis.report.html import render_page
from analysis.results.comparison import compare
from analysis.results.comparison_page import render_comparison
from analysis.results.effects_figures import COLOUR_CYCLE
from analysis.results.study import study_report
from analysis.results.study_figures import draw_study
from analysis.results.study_page import render_study
from tests.unit.recorded_run import RECORDED
from tests.unit.synthetic_report import make_report
from tests.unit.test_compare import group
from tests.unit.test_schemas import contended, with_a_changing_network, with_options_and_a_p99
from tests.unit.thousand_runs import STUDY, write_study

TEXT, GRAPHIC = 4.5, 3.0  # 1.4.3 and 1.4.11
CSS = "".join(
    (resources.files("analysis.report") / "templates" / name).read_text()
    for name in ("page.css", "timeline.css")
)
CHROMIUM = shutil.which("chromium")


def channels(colour: str) -> list[float]:
    digits = colour.removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(one * 2 for one in digits)
    return [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]


def contrast(one: list[float], other: list[float]) -> float:
    """WCAG's ratio of the relative luminances of two colours of sRGB (channels from 0 to 1)."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def over(top: list[float], alpha: float, below: list[float]) -> list[float]:
    return [alpha * a + (1 - alpha) * b for a, b in zip(top, below, strict=True)]


def palettes() -> dict[str, dict[str, list[float]]]:
    """The style sheet's colours on a light and on a dark screen, and on paper."""
    blocks = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]+)\b", block))
        for block in re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    ]
    assert len(blocks) == 3
    light = blocks[0]
    named = {"light": light, "dark": light | blocks[1], "print": light | blocks[2]}
    return {
        mode: {name: channels(value) for name, value in of.items() if len(value) in (4, 7)}
        for mode, of in named.items()
    }


def used(*properties: str) -> set[str]:
    """Variables of the style sheet that these properties take."""
    pattern = rf"(?<![\w-])(?:{'|'.join(properties)}):[^;}}]*?var\(--(\w+)\)"
    return set(re.findall(pattern, CSS))


def test_the_formula_is_wcags() -> None:
    assert contrast(channels("#000"), channels("#fff")) == pytest.approx(21)
    assert contrast(channels("#777777"), channels("#fff")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_text_stands_out_from_every_background(mode: str) -> None:
    palette = palettes()[mode]
    texts, backgrounds = used("color", "fill"), used("background", "background-color")
    texts -= {"paper"}  # the timeline's slack is a veil and no text
    assert texts == {"ink", "soft", "good", "bad", "accent"} and backgrounds >= {"paper", "panel"}
    for text, below in itertools.product(sorted(texts), sorted(backgrounds - {"shade"})):
        ratio = contrast(palette[text], palette[below])
        assert ratio >= TEXT, f"{text} on {below}, {mode}: {ratio:.2f}"
    for edge, below in itertools.product(("accent", "soft"), sorted(backgrounds - {"shade"})):
        assert contrast(palette[edge], palette[below]) >= GRAPHIC  # focus, borders of controls and swatches


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_what_is_written_in_a_heatmap_stands_out_from_its_cell(mode: str, part: float) -> None:
    palette = palettes()[mode]
    ink, alpha = shade(part)
    assert ink == INK  # which the page replaces with its own
    assert contrast(palette["ink"], over(palette["ink"], alpha, palette["paper"])) >= TEXT


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_lines_stand_out_from_the_page(mode: str) -> None:
    for colour in COLOUR_CYCLE:
        assert contrast(channels(colour), palettes()[mode]["paper"]) >= GRAPHIC, colour


def test_what_is_written_in_cells_of_slack_stands_out() -> None:
    for number, (_, fill) in enumerate(_SLACK_SHADES):
        assert contrast(channels("#fff" if number == 0 else "#000"), channels(fill)) >= TEXT


class Page(HTMLParser):
    """What a page consists of, as assistive technology is told."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.language = ""
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.drawings: list[dict[str, str | None]] = []
        self.titles: dict[str, str] = {}
        self.unnamed: list[str] = []
        self.headers: list[dict[str, str | None]] = []
        self.tables = self.with_headers = self.mains = 0
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += filter(None, [values.get("id")])
        self._open.append(values.get("id") or "")
        if tag == "html":
            self.language = values.get("lang") or ""
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag in ("svg", "img"):
            self.drawings.append(values)
        if tag == "th":
            self.headers.append(values)
        self.tables += tag == "table"
        self.with_headers += tag == "thead"
        self.mains += tag == "main"
        scrolls = values.get("tabindex") == "0" and tag == "div"
        if scrolls and not (values.get("role") and values.get("aria-label")):
            self.unnamed.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1]:
            self.titles.setdefault(self._open[-1], data.strip())


def pages() -> dict[str, str]:
    saved = json.loads((RECORDED / "report.json").read_text())
    reports: dict[str, dict[str, Any]] = {
        "synthetic": make_report(),
        "contended": contended(),
        "network": with_a_changing_network(),
        "options": with_options_and_a_p99(),
        "recorded": saved,
    }
    found = {name: render_page(one, draw_figures(one)) for name, one in reports.items()}
    several = group([1.2, 1.3], seed=2)
    return found | {"comparison": render_comparison(compare([several, group([1.0, 1.1])]))}


@pytest.fixture(scope="module")
def every_page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("pages") / "study"
    write_study(out, repetitions=1)
    report = study_report(out)
    return pages() | {"study": render_study(report, draw_study(report))}


def test_pages_are_read_aloud_as_they_are_seen(every_page: dict[str, str]) -> None:
    for name, html in every_page.items():
        page = Page(html)
        assert page.language == "en", name
        assert page.mains == 1, name
        assert page.headings[0] == 1 and page.headings.count(1) == 1, name
        assert all(after <= before + 1 for before, after in itertools.pairwise(page.headings)), name
        assert len(set(page.ids)) == len(page.ids), name
        assert page.unnamed == [], name
        assert page.drawings, name
        for drawing in page.drawings:
            assert drawing.get("role") == "img", name
            label = drawing.get("aria-label") or page.titles.get(drawing.get("aria-labelledby") or "")
            assert label and len(label) > 20, name
        assert page.tables == page.with_headers > 0, name
        assert page.headers, name
        assert all(header.get("scope") in ("col", "row") for header in page.headers), name


def test_a_page_runs_nothing_but_its_own_scripts(every_page: dict[str, str]) -> None:
    for html in every_page.values():
        (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
        scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
        assert "unsafe-inline" not in policy.split("script-src")[1]
        assert len(scripts) >= 1
        assert "src=" not in html and 'href="http' not in html


def test_pages_are_small(every_page: dict[str, str]) -> None:
    for name, html in every_page.items():
        assert len(html.encode()) < 1_000_000, name


def in_browser(tmp_path: Path, html: str, script: str, size: str = "1200,900") -> Any:
    """What a script finds on the page, run after the page's own; the page's policy stays for its own."""
    if CHROMIUM is None:
        pytest.skip("no chromium")
    marked = html.replace("</body>", f"<script>{script}</script></body>")
    # The page as it is has to work under its own policy; a script of ours is let in by its digest.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    marked = marked.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    file = tmp_path / "page.html"
    file.write_text(marked)
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000",
         f"--window-size={size}",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    if found is None:
        raise AssertionError(f"the script did not end: {done.stderr[-500:]}")
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


_SAY = """
const say = found => { const pre = document.createElement("pre"); pre.id = "found";
  pre.textContent = JSON.stringify(found); document.body.append(pre); };
"""


@pytest.mark.optional
def test_tables_sort_in_a_browser(every_page: dict[str, str], tmp_path: Path) -> None:
    script = (
        _SAY
        + """
const table = [...document.querySelectorAll("table")].find(t => t.tHead.textContent.includes("median"));
const column = () => [...table.tBodies[0].rows].map(row => row.cells[3].textContent.trim());
const header = table.tHead.rows[0].cells[3], button = header.querySelector("button");
const before = column(), none = header.getAttribute("aria-sort");
button.focus(); button.click(); const up = column(), ascending = header.getAttribute("aria-sort");
button.click(); const down = column(), descending = header.getAttribute("aria-sort");
say({before, up, down, said: [none, ascending, descending], focused: document.activeElement === button,
  names: [...table.tBodies[0].rows].map(row => row.cells[0].textContent)});
"""
    )
    found = in_browser(tmp_path, every_page["study"], script)
    seconds = [_seconds(text) for text in found["before"]]
    assert [_seconds(text) for text in found["up"]] == sorted(seconds)
    assert found["down"] == found["up"][::-1]
    assert found["said"] == [None, "ascending", "descending"] and found["focused"]
    assert len(set(found["names"])) == 8  # rows move whole


def _seconds(text: str) -> float:
    value, unit = text.split()
    return float(value) * {"ms": 1e-3, "s": 1.0}[unit]


@pytest.mark.optional
def test_the_timeline_is_drawn_in_a_browser(every_page: dict[str, str], tmp_path: Path) -> None:
    script = _SAY + 'say(document.querySelectorAll("#timeline rect").length);'
    assert in_browser(tmp_path, every_page["recorded"], script) > 10


@pytest.mark.optional
@pytest.mark.parametrize("name", ["study", "recorded", "comparison"])
def test_a_page_on_a_phone_scrolls_in_one_direction(
    every_page: dict[str, str], tmp_path: Path, name: str
) -> None:
    """What is wide scrolls by itself (1.4.10), and a drawing's letters are not smaller than 7 CSS pixels."""
    script = (
        _SAY
        + """
const page = document.documentElement;
const scales = [...document.querySelectorAll("figure svg")].map(svg => {
  const box = svg.viewBox.baseVal; return svg.getBoundingClientRect().width / box.width; });
say({wide: page.scrollWidth - innerWidth, width: innerWidth, least: Math.min(...scales)});
"""
    )
    found = in_browser(tmp_path, every_page[name], script, size="500,900")
    assert found["width"] == 500  # narrower than the rule for phones; a window cannot be smaller
    assert found["wide"] <= 0
    assert found["least"] * 9 >= 7  # drawings are set in 9 points


def test_figures_scroll_on_a_phone_and_not_on_paper() -> None:
    narrow = CSS[CSS.index("@media (max-width: 46rem)") :]
    assert "figure { overflow-x: auto; }" in narrow and "figure svg { min-width: 38rem; }" in narrow
    on_paper = CSS[CSS.index("@media print") :]
    assert "figure { overflow: visible; }" in on_paper and "min-width: 0" in on_paper
    assert ".scroll { overflow: visible; background: none; }" in on_paper


def test_the_study_that_is_drawn_has_all_groups() -> None:
    assert len({(cell.experiment.profile, cell.experiment.level) for cell in STUDY.cells}) == 8
