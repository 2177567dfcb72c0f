"""Figures: deterministic, legible without colour vision, and true to the numbers."""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.ledger.model import COMPONENTS, Ledger
from analysis.report.figures import COLOURS, INK, draw_figures
from analysis.report.report import build_report
from tests.unit.synthetic_run import NET0_SEC0, baseline_pair, make_ledger, make_run

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
VISION = {
    "full": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colour: str, vision: str) -> NDArray[np.float64]:
    """CIE Lab of ``#rrggbb`` as somebody with that vision sees it."""
    coded = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = to_xyz @ seen / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def figures_of(ledger: Ledger, *, baseline: bool = True) -> dict[str, str]:
    return draw_figures(build_report(make_run(ledger=ledger), ledger, baseline_pair() if baseline else None))


@functools.cache
def drawn() -> dict[str, str]:
    """The figures of an ordinary run and its baseline."""
    return figures_of(make_ledger())


def words(svg: str) -> list[str]:
    return [text for text in ElementTree.fromstring(svg).itertext() if text.strip()]


@pytest.mark.parametrize("vision", VISION)
def test_any_two_components_look_different(vision: str) -> None:
    closest = min(
        (float(np.linalg.norm(lab(COLOURS[one], vision) - lab(COLOURS[other], vision))), one, other)
        for one, other in itertools.combinations(COLOURS, 2)
    )
    assert closest[0] > 20, closest


def contrast_on_white(colour: str) -> float:
    coded = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    return float(1.05 / (linear @ np.array([0.2126, 0.7152, 0.0722]) + 0.05))


def test_what_is_pale_on_white_has_an_outline() -> None:
    """WCAG 1.4.11: 3:1 for what a graphic is understood by, or a line around it that has it."""
    assert contrast_on_white(INK) > 3
    pale = {name for name, colour in COLOURS.items() if contrast_on_white(colour) < 3}
    assert {"server", "propagation"} <= pale
    ledger = make_ledger(dict.fromkeys(COMPONENTS, 500.0))
    for figure in ("breakdown", "rounds", "overhead"):
        svg = figures_of(ledger)[figure]
        for name in pale - {"residual"}:
            fills = re.findall(rf'style="fill: {COLOURS[name]}[^"]*"', svg)
            assert fills, (figure, name)
            assert all(f"stroke: {INK}" in fill for fill in fills), (figure, name)


def test_every_figure_has_a_title_of_its_own() -> None:
    for name, svg in drawn().items():
        root = ElementTree.fromstring(svg)
        first = next(iter(root))
        assert first.tag.endswith("title")
        assert first.text
        assert root.attrib["aria-labelledby"] == first.attrib["id"] == f"{name}-title"
        assert root.attrib["role"] == "img"


def test_every_component_has_a_colour() -> None:
    assert set(COLOURS) == {*COMPONENTS, "residual"}


def test_the_same_report_gives_the_same_bytes() -> None:
    assert figures_of(make_ledger()) == drawn()


def test_text_stays_text_and_nothing_is_a_picture() -> None:
    for name, svg in drawn().items():
        assert not re.search("<image|dc:date", svg), name
    found = drawn()
    assert "transmission" in words(found["breakdown"])
    assert "2.42 s · 49.8 %" in words(found["breakdown"])
    assert "duration [s]" in words(found["rounds"])
    assert "left out" in words(found["rounds"])
    assert "+2.37 s" in words(found["overhead"])
    assert words(found["clients"]).count("critical") >= 10


def test_stacked_bars_are_as_high_as_the_rounds_are_long() -> None:
    """The drawn heights of one round's parts, in points, keep the proportions of its components."""
    ledger = make_ledger({"compute": 1000.0, "transmission": 3000.0}, rounds=2)
    one = ledger.rounds[1]
    svg = figures_of(ledger, baseline=False)["rounds"]

    def height(colour: str) -> float:
        paths = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="fill: ' + colour, svg)
        ys = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", paths[1])]
        return max(ys) - min(ys)

    ratio = height(COLOURS["transmission"]) / height(COLOURS["compute"])
    assert ratio == pytest.approx(one.components_ns["transmission"] / one.components_ns["compute"], rel=1e-3)


def test_without_a_baseline_there_is_no_overhead_figure() -> None:
    assert set(figures_of(make_ledger(NET0_SEC0), baseline=False)) == {"breakdown", "rounds", "clients"}


@pytest.mark.parametrize("rounds", [1, 13, 101])
def test_short_and_long_runs_can_be_drawn(rounds: int) -> None:
    assert len(figures_of(make_ledger(rounds=rounds))) == 4


def test_one_client_no_client_and_a_missing_update_can_be_drawn() -> None:
    figures_of(make_ledger(clients=1))
    ledger = make_ledger()
    without = replace(
        ledger,
        rounds=tuple(replace(one, clients=(), critical_client=None) for one in ledger.rounds),
        setup=(),
    )
    figures_of(without)
    missing = tuple(
        replace(one, clients=(replace(one.clients[0], arrival_ns=None), *one.clients[1:]))
        for one in ledger.rounds
    )
    assert "never" in words(figures_of(replace(ledger, rounds=missing))["clients"])


def test_numbers_stand_at_their_bars_and_ticks_inside_the_axis() -> None:
    """Where the baseline took far longer, its tick is far from the bar, and neither may vanish."""
    fast = figures_of(make_ledger({**NET0_SEC0, "compute": 100.0}))["breakdown"]
    slow = figures_of(make_ledger(NET0_SEC0))["breakdown"]
    numbers = re.findall(r">([\d.]+ m?s · [\d.]+ %)<", fast)
    assert len(numbers) == len(re.findall(r">([\d.]+ m?s · [\d.]+ %)<", slow)) >= 5
