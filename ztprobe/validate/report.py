"""validation.json, validation.html and the table, from the outcomes alone."""

from __future__ import annotations

import io
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from analysis.report.wording import plural
from ztprobe import __version__
from ztprobe.printable import printable, printable_tree
from ztprobe.rundir.store import dump_json, write_atomically
from ztprobe.validate.model import CROSS_TALK_LIMIT, Outcome, ValidationCase

__all__ = ("WIDTH", "as_json", "print_table", "write_report")

WIDTH = 100
SCHEMA_VERSION = 1
_TEMPLATE = Path(__file__).with_name("validation.html.j2")
_COLOURS = ("#4856c8", "#fb6f0e", "#02985c", "#ac0000", "#9e2b8f", "#40cdff", "#965c78", "#111111")
_INK = "#1c2024"
_NS_PER_MS = 1e6


def as_json(outcomes: Sequence[Outcome], facts: Mapping[str, Any]) -> dict[str, Any]:
    """validation.json's content; times in milliseconds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "ztprobe": __version__,
        "passed": all(outcome.passed for outcome in outcomes),
        "cross_talk_limit": CROSS_TALK_LIMIT,
        **facts,
        "scenarios": [
            {
                "name": outcome.name,
                "title": outcome.title,
                "background": outcome.background,
                "run_dir": outcome.run_dir,
                "passed": outcome.passed,
                "problems": list(outcome.problems),
                "cases": [_case(case) for case in outcome.cases],
            }
            for outcome in outcomes
        ],
    }


def _case(case: ValidationCase) -> dict[str, Any]:
    return {
        "where": case.where,
        "size": case.size,
        "injections": len(case.pairs),
        "true_ms": _ms(case.true_ns),
        "attributed_ms": _ms(case.attributed_ns),
        "error_ms": _ms(case.error_ns),
        "error_ci95_ms": [_ms(edge) for edge in case.error_ci95_ns],
        "bound_ms": _ms(case.bound_ns),
        "cross_talk": None if case.cross_talk is None else round(case.cross_talk, 5),
        "passed": case.passed,
        "pairs": [
            {"round": p.round, "true_ms": _ms(p.true_ns), "attributed_ms": _ms(p.attributed_ns)}
            for p in case.pairs
        ],
    }


def _ms(value_ns: float) -> float:
    return round(value_ns / _NS_PER_MS, 4)


def write_report(out: Path, content: Mapping[str, Any]) -> None:
    """Write validation.json and validation.html into ``out``."""
    write_atomically(out / "validation.json", dump_json(content))
    write_atomically(out / "validation.html", _page(content).encode())


def _page(content: Mapping[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    content = printable_tree(content)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"ms": _human_ms, "signed": _signed_ms, "percent": _percent}
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(v=content, figure=Markup(_figure(content)))


def _figure(content: Mapping[str, Any]) -> str:
    """Attributed against true, and the error as a share of its bound, as SVG for a page."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.hashsalt": "ztprobe",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 9.0,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9.6, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        cases = [(s, case) for s in content["scenarios"] for case in s["cases"]]
        places = list(dict.fromkeys(case["where"] for _, case in cases))
        for index, place in enumerate(places):
            colour = _COLOURS[index % len(_COLOURS)]
            marker = "os^Dv<>P"[index // len(_COLOURS) % 8] if index >= len(_COLOURS) else "o"
            pairs = [p for _, case in cases if case["where"] == place for p in case["pairs"]]
            true, attributed = [p["true_ms"] for p in pairs], [p["attributed_ms"] for p in pairs]
            left.scatter(true, attributed, s=14, color=colour, marker=marker, label=place, alpha=0.75)
            mine = [case for _, case in cases if case["where"] == place and case["bound_ms"]]
            right.scatter(
                [case["true_ms"] for case in mine],
                [case["error_ms"] / case["bound_ms"] for case in mine],
                s=22,
                color=colour,
                marker=marker,
            )
        every = [p["true_ms"] for _, case in cases for p in case["pairs"] if p["true_ms"] > 0]
        if every:
            left.plot([min(every), max(every)], [min(every), max(every)], color=_INK, linewidth=0.7)
            left.set_xscale("log")
            left.set_yscale("log")
            right.set_xscale("log")
            left.legend(frameon=False, fontsize=8)
        for edge in (-1, 1):
            right.axhline(edge, color=_INK, linewidth=0.7, linestyle="--")
        right.axhline(0, color=_INK, linewidth=0.4)
        left.set(xlabel="true, ms", ylabel="attributed, ms", title="Every injection")
        right.set(xlabel="true, ms", ylabel="median error / bound", title="Error against its bound")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    title = '<title id="accuracy-title">Attributed against true, and the error against its bound</title>'
    labelled = re.sub(
        r"<svg\b([^>]*)>", rf'<svg\1 role="img" aria-labelledby="accuracy-title">\n{title}', svg, count=1
    )
    return labelled[labelled.index("<svg") :].replace(_INK, "currentColor")


def print_table(content: Mapping[str, Any], stream: IO[str] | None = None) -> None:
    """The table within 100 columns, and what went wrong, if anything did."""
    stream = stream or sys.stdout
    for line in _lines(content):
        print(printable(line), file=stream)


def _lines(content: Mapping[str, Any]) -> Iterable[str]:
    columns = f"{'milliseconds':<19}{'injected':>11}{'n':>3}{'true':>8}{'attributed':>11}{'error':>8}"
    yield f"{columns}{'95 % interval':>16}{'bound':>7}{'x-talk':>8}"
    for scenario in content["scenarios"]:
        yield ""
        yield from _wrapped(f"{scenario['name']}: {scenario['title']} ({scenario['background']})")
        for case in scenario["cases"]:
            cross_talk = "–" if case["cross_talk"] is None else _percent(case["cross_talk"])
            low, high = (_number(edge, sign="+") for edge in case["error_ci95_ms"])
            yield (
                f"  {case['where']:<17}{case['size']:>11}{case['injections']:>3}"
                f"{_number(case['true_ms']):>8}{_number(case['attributed_ms']):>11}"
                f"{_number(case['error_ms'], sign='+'):>8}{f'{low} {high}':>16}"
                f"{_number(case['bound_ms']):>7}{cross_talk:>8}  {'ok' if case['passed'] else 'MISSED'}"
            )
        for problem in scenario["problems"]:
            yield from _wrapped(f"  {problem}")
    yield ""
    cases = [case for scenario in content["scenarios"] for case in scenario["cases"]]
    missed = sum(not case["passed"] for case in cases)
    troubled = sum(bool(scenario["problems"]) for scenario in content["scenarios"])
    verdict = f"{plural(len(cases), 'cost')} in {plural(len(content['scenarios']), 'scenario')}: "
    verdict += "every one within its bound" if not missed else f"{missed} beyond their bounds"
    yield verdict + (f"; {plural(troubled, 'scenario')} with problems" if troubled else "")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="    ")


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.{2 if abs(value) < 100 else 0}f}"


def _human_ms(value_ms: float) -> str:
    return f"{value_ms:.2f} ms" if abs(value_ms) < 100 else f"{value_ms:.0f} ms"


def _signed_ms(value_ms: float) -> str:
    return f"{value_ms:+.2f} ms" if abs(value_ms) < 100 else f"{value_ms:+.0f} ms"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
