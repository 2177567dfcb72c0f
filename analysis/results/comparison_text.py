"""A comparison of groups of runs as text in at most 100 columns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.report.text_report import WIDTH
from analysis.report.wording import NOTHING, PART_NAMES, human_percent, human_time, listed, plural
from analysis.results.samples import PARTS
from ztprobe.printable import printable_tree

__all__ = (
    "first_words",
    "human_change",
    "pair_words",
    "print_comparison",
    "rows_of",
    "spoiled_words",
)

_MOSTLY_TOGETHER = 0.8


def print_comparison(comparison: Mapping[str, Any], stream: IO[str] | None = None) -> None:
    """Print one table for each group beside the reference."""
    comparison = printable_tree(comparison)
    console = Console(file=stream or sys.stdout, width=WIDTH, highlight=False)
    reference = comparison["reference"]
    with console.capture() as printed:
        for words in first_words([reference, *comparison["groups"]]):
            console.print(Text(f"read this first: {words}", style="bold"))
        if (pairs := pair_words(comparison)) is not None:
            console.print(Text(pairs))
        for group in comparison["groups"]:
            console.print(Text(f"{_named(group)} against {_named(reference)}", style="bold"))
            console.print(_table(group, reference))
            console.print(Text(f"interval: {group['method']}; Hedges' g in units of {group['unit']}\n"))
    console.file.write(printed.get())


def first_words(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say before any number: of machines that were not quiet, or not alike."""
    return [*_size_words(groups), *_offload_words(groups), *_contention_words(groups)]


def _size_words(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    if not (had := _unlike(groups, "cpus", str)):
        return []
    return [f"runs had different numbers of CPUs ({had}): differences may be that and nothing else."]


def _offload_words(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    if not (had := _unlike(groups, "offloads", lambda on: "on" if on else "off")):
        return []
    return [
        f"segmentation offloads of the pods' interfaces were not alike ({had}), and neither were the sizes"
        " of packets: differences may be that and nothing else."
    ]


def _unlike(groups: Sequence[Mapping[str, Any]], fact: str, word: Callable[[Any], str]) -> str:
    """What each group's runs had; empty: all had the same."""
    if len({value for group in groups for value in group[fact]}) < 2:
        return ""
    return listed([f"{one['experiment']} {' or '.join(map(word, one[fact]))}" for one in groups if one[fact]])


def _contention_words(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = [(group["experiment"], group["contended_runs"], group["runs"]) for group in groups]
    kept = [
        f"{words} Differences may be that and nothing else, so they have no interval; make those runs anew."
        for words in spoiled_words(counts)
    ]
    counts = [
        (group["experiment"], group["left_out_runs"], group["runs"] + group["left_out_runs"])
        for group in groups
    ]
    return [f"{words} They are left out of what follows." for words in spoiled_words(counts)] + kept


def spoiled_words(counts: Sequence[tuple[str, int, int]]) -> list[str]:
    """Which runs others used the machine during, as a sentence; empty: none.

    :param counts: group, how many of its runs, of how many.
    """
    said = [f"{some} of {plural(every, 'run')} of {name}" for name, some, every in counts if some]
    if not said:
        return []
    return [f"others used the machine during {listed(said)} (each run's report says who and how much)."]


def rows_of(group: Mapping[str, Any], reference: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row a part that either side has, the whole round last, in words."""
    order = [*(part for part in PARTS if part != "duration"), "duration"]
    rows = []
    for part in order:
        found = group["parts"][part]
        if part not in ("duration", "residual") and not (reference["mean_s"][part] or group["mean_s"][part]):
            continue
        rows.append(
            {
                "part": PART_NAMES.get(part, "round"),
                "reference": human_time(reference["mean_s"][part]),
                "mean": human_time(group["mean_s"][part]),
                "delta": human_time(found["delta_s"], signed=True),
                "interval": _interval(found["ci95"]),
                "relative": human_change(found["relative"]),
                "effect": NOTHING if found["effect_size"] is None else f"{found['effect_size']:.1f}",
            }
        )
    return rows


def human_change(share: float | None) -> str:
    """A relative change: ``+4.2 %``, from threefold on ``× 3.1``; an en dash for None."""
    if share is None:
        return NOTHING
    if share >= 2:
        return f"× {1 + share:.3g}"
    return f"{'−' if share < 0 else '+'}{abs(share) * 100:.1f} %"


def pair_words(comparison: Mapping[str, Any]) -> str | None:
    """How many pairs are compared and what became of others; None: runs were not made in pairs."""
    if "pairs" not in comparison:
        return None
    left_out = f", {comparison['left_out_pairs']} left out" if comparison["left_out_pairs"] else ""
    again = (
        f"; {plural(comparison['repeated_runs'], 'run')} made anew, as others used the machine meanwhile"
        if comparison["repeated_runs"]
        else ""
    )
    said = f"{plural(comparison['pairs'], 'pair')} compared{left_out}{again}."
    return said if "duet" not in comparison else f"{said} {_duet_words(comparison['duet'])}"


def _duet_words(duet: Mapping[str, Any]) -> str:
    share = duet["together_share"]
    said = (
        "Both runs of a pair ran at once, each on half of the cores: times are those of a machine of half the"
        f" size. Their counted rounds went on together for {human_percent(share)} of the longer run's time"
    )
    alone = "; in the rest what slowed it is not in the other one" if share < _MOSTLY_TOGETHER else ""
    return f"{said}{alone}."


def _named(group: Mapping[str, Any]) -> str:
    return f"{group['experiment']} ({plural(group['runs'], 'run')}, {plural(group['rounds'], 'round')})"


def _interval(edges: list[float] | None) -> str:
    return NOTHING if edges is None else " … ".join(human_time(edge, signed=True) for edge in edges)


def _table(group: Mapping[str, Any], reference: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("mean a round")
    for name in ("reference", "here", "difference", "95 % interval", "change", "g"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows_of(group, reference):
        style = "bold" if row["part"] == "round" else ""
        table.add_row(*row.values(), style=style)
    return table
