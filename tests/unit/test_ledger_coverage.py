"""Lost events: which rounds they touch, how wide that makes them, and when a breakdown is withheld."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from analysis.evidence.reader import TIMES, read_events
from analysis.evidence.values import KernelEvents
from analysis.ledger.coverage import losses_of
from analysis.ledger.ledger import build_ledger
from analysis.ledger.model import COMPONENTS, Ledger
from analysis.report.figures import draw_figures
from analysis.report.html import render_page
from analysis.report.report import build_report
from analysis.report.text_report import print_report
from ztprobe.cli.entry import ztprobe
from ztprobe.rundir.schema import LOSS_CHANNELS
from ztprobe.rundir.store import Run, load_run

RECORDED = Path(__file__).parents[1] / "data" / "net2-sec3"
MS = 1_000_000


@functools.cache
def other_pair() -> tuple[Run, Ledger]:
    """The baseline that was measured with it."""
    run = load_run(RECORDED / "baseline")
    return run, build_ledger(run)


@functools.cache
def seen_events() -> KernelEvents:
    return read_events(load_run(RECORDED).events)


@pytest.fixture(scope="module")
def recorded() -> Run:
    return load_run(RECORDED)


@pytest.fixture(scope="module")
def windows(recorded: Run) -> list[tuple[int, int]]:
    return [(one.start_ns, one.start_ns + one.duration_ns) for one in build_ledger(recorded).rounds]


def by_round(windows: list[tuple[int, int]], **values: int) -> list[int]:
    """0 for every round, but ``at2=7``: 7 for the third."""
    return [values.get(f"at{i}", 0) for i in range(len(windows))]


def losing(run: Run, *log: tuple[str, int, int, int], ring: str | None = None, **more: int) -> Run:
    """The run with these losses written down: (channel, from, to, count); ``more``: counted, but not when."""
    entries = [dict(zip(("channel", "from_ns", "to_ns", "count"), entry, strict=True)) for entry in log]
    if ring:
        entries = [entry | {"ring": ring} for entry in entries]
    loss = dict.fromkeys(LOSS_CHANNELS, 0)
    for entry in entries:
        loss[entry["channel"]] += entry["count"]
    for channel, count in more.items():
        loss[channel] += count
    return dataclasses.replace(run, meta=run.meta | {"loss": loss, "loss_log": entries})


def test_a_loss_touches_the_round_it_falls_into(recorded: Run, windows: list[tuple[int, int]]) -> None:
    start_ns, end_ns = windows[2]
    run = losing(recorded, ("recursion_missed", start_ns + 100 * MS, start_ns + 150 * MS, 7))
    found = losses_of(run.meta, seen_events(), windows)
    assert [one.lost_events for one in found] == by_round(windows, at2=7)
    assert found[2].uncovered_ns == 50 * MS
    seen = sum(
        ((run.events[name][time] >= start_ns) & (run.events[name][time] < end_ns)).sum()
        for name, time in TIMES.items()
    )
    assert found[2].coverage == seen / (seen + 7)
    assert [one.coverage for i, one in enumerate(found) if i != 2] == [1.0] * (len(windows) - 1)


def test_a_loss_on_the_edge_counts_for_both_rounds(recorded: Run, windows: list[tuple[int, int]]) -> None:
    edge_ns = windows[1][1]
    run = losing(recorded, ("parse_failure", edge_ns - 20 * MS, edge_ns + 30 * MS, 3))
    found = losses_of(run.meta, seen_events(), windows)
    assert [one.lost_events for one in found] == by_round(windows, at1=3, at2=3)
    assert [one.uncovered_ns for one in found] == by_round(windows, at1=20 * MS, at2=30 * MS)


def test_a_lost_burst_may_have_been_the_round_befores(recorded: Run, windows: list[tuple[int, int]]) -> None:
    """A burst is handed over when the next one begins, so an update's with the next round's model."""
    start_ns = windows[3][0]
    entry = ("ring_buffer_full", start_ns + 1 * MS, start_ns + 40 * MS, 2)
    found = losses_of(losing(recorded, entry, ring="bursts").meta, seen_events(), windows)
    assert [one.lost_events for one in found] == by_round(windows, at2=2, at3=2)
    found = losses_of(losing(recorded, entry, ring="points").meta, seen_events(), windows)
    assert [one.lost_events for one in found] == by_round(windows, at3=2)
    after_ns = windows[-1][1] + 5 * MS
    late = losing(recorded, ("map_full", after_ns, after_ns + MS, 1))
    assert [one.lost_events for one in losses_of(late.meta, seen_events(), windows)] == by_round(
        windows, at7=1
    )


def test_without_a_connections_row_nothing_of_it_is_known_from_then_on(
    recorded: Run, windows: list[tuple[int, int]]
) -> None:
    start_ns = windows[5][0]
    run = losing(recorded, ("ring_buffer_full", start_ns, start_ns + MS, 1), ring="connections")
    found = losses_of(run.meta, seen_events(), windows)
    assert [one.lost_events for one in found] == by_round(windows, at5=1, at6=1, at7=1)
    assert [one.uncovered_ns for one in found[5:]] == [end - start for start, end in windows[5:]]


def test_a_loss_without_a_time_may_be_anybodys(recorded: Run, windows: list[tuple[int, int]]) -> None:
    found = losses_of(losing(recorded, map_full=4).meta, seen_events(), windows)
    assert [one.lost_events for one in found] == [4] * len(windows)
    assert [one.uncovered_ns for one in found] == [end - start for start, end in windows]


def test_a_loss_outside_of_rounds_touches_none(recorded: Run, windows: list[tuple[int, int]]) -> None:
    before_ns = windows[0][0]
    run = losing(recorded, ("ring_buffer_full", before_ns - 90 * MS, before_ns - 40 * MS, 9), ring="bursts")
    assert all(one.lost_events == 0 for one in losses_of(run.meta, seen_events(), windows))
    notes = build_report(run, build_ledger(run), None)["notes"]
    assert "9 events were lost or unreadable, all outside of rounds." in notes


def test_a_reader_that_fell_behind_lost_nothing(recorded: Run, windows: list[tuple[int, int]]) -> None:
    run = losing(recorded, ("reader_behind", windows[1][0], windows[1][1], 3), reader_behind=1)
    assert all(
        (one.lost_events, one.coverage) == (0, 1.0) for one in losses_of(run.meta, seen_events(), windows)
    )
    report = build_report(run, build_ledger(run), None)
    assert "the reader fell behind 4 times; nothing is lost by that alone." in report["notes"]


def test_uncertainty_widens_intervals_of_components_and_not_of_the_duration(
    recorded: Run, windows: list[tuple[int, int]]
) -> None:
    pair = other_pair()
    whole = build_report(recorded, build_ledger(recorded), pair)
    start_ns = windows[2][0]
    run = losing(recorded, ("recursion_missed", start_ns, start_ns + 50 * MS, 10))
    ledger = build_ledger(run)
    touched = build_report(run, ledger, pair)
    uncertainty_s = ledger.rounds[2].uncertainty_ns / 1e9
    # 50 ms in which events were lost, and each of the ten may have told of as long a pause as any did
    gaps, copies = recorded.events["gaps"], recorded.events["retransmissions"]
    copies = copies[copies["first_sent_ns"] > 0]
    longest_s = (
        max((gaps["ts_ns"] - gaps["since_ns"]).max(), (copies["ts_ns"] - copies["first_sent_ns"]).max()) / 1e9
    )
    residual_s = ledger.rounds[2].residual_ns / 1e9
    assert uncertainty_s == pytest.approx(min(0.050 + residual_s + 10 * longest_s, windows_s(windows, 2)))
    widened_s = uncertainty_s / touched["rounds_counted"]
    for part in (*COMPONENTS, None):
        entries = [
            r["overhead"]["components"][part] if part else r["overhead"]["residual"] for r in (whole, touched)
        ]
        assert entries[0]["delta_s"] == entries[1]["delta_s"]
        assert entries[1]["ci95"][0] == pytest.approx(entries[0]["ci95"][0] - widened_s, abs=2e-9)
        assert entries[1]["ci95"][1] == pytest.approx(entries[0]["ci95"][1] + widened_s, abs=2e-9)
    assert whole["overhead"]["duration"] == touched["overhead"]["duration"]
    assert "lost events widen it by" in touched["overhead"]["method"]
    assert [one["lost_events"] for one in touched["rounds"]] == by_round(windows, at2=10)
    assert touched["rounds"][2]["uncertainty_s"] == pytest.approx(uncertainty_s)


def windows_s(windows: list[tuple[int, int]], index: int) -> float:
    return (windows[index][1] - windows[index][0]) / 1e9


def withheld_report(recorded: Run, windows: list[tuple[int, int]], *rounds: int, floor: float = 0.95) -> Any:
    log = [("ring_buffer_full", windows[i][0] + MS, windows[i][0] + 2 * MS, 5000) for i in rounds]
    run = losing(recorded, *log, ring="points")
    pair = other_pair()
    return build_report(run, build_ledger(run), pair, coverage_floor=floor)


def text_of(report: Any) -> str:
    stream = io.StringIO()
    print_report(report, stream, colour=False)
    return stream.getvalue()


def test_below_the_floor_the_breakdown_is_withheld(recorded: Run, windows: list[tuple[int, int]]) -> None:
    report = withheld_report(recorded, windows, 2)
    one = report["rounds"][2]
    assert one["withheld"] and not one["counted"] and one["coverage"] < 0.95
    assert set(one["components"]) == set(COMPONENTS) and set(one["components"].values()) == {None}
    assert one["residual_s"] is None and one["sub_rows"] == {}
    assert one["duration_s"] > 0  # the server's own
    assert all(set(client["components"].values()) == {None} for client in one["clients"])
    assert (report["rounds_counted"], report["rounds_withheld"]) == (6, 1)
    assert any("1 of 8 rounds have no breakdown" in note for note in report["notes"])
    assert "breakdown of 1 round withheld" in text_of(report)
    page = render_page(report, draw_figures(report))
    assert "withheld:" in page and "When events were lost" in page
    # six counted rounds are too few for an interval, and it says so
    assert report["overhead"]["components"]["compute"]["ci95"] is None
    assert "too few rounds" in text_of(report)


def test_a_lower_floor_shows_it(recorded: Run, windows: list[tuple[int, int]]) -> None:
    report = withheld_report(recorded, windows, 2, floor=0.1)
    assert report["rounds_withheld"] == 0 and report["rounds_counted"] == 7
    assert report["rounds"][2]["components"]["compute"] is not None
    assert report["coverage_floor"] == 0.1


def test_with_every_round_withheld_there_is_still_a_report(
    recorded: Run, windows: list[tuple[int, int]]
) -> None:
    report = withheld_report(recorded, windows, *range(len(windows)))
    assert report["rounds_counted"] == 0 and report["overhead"] is None
    assert report["duration"]["median_s"] > 0 and report["components"]["compute"]["median_s"] is None
    assert report["diagnosis"].startswith("No round has a breakdown")
    assert any(note.startswith("No overhead") for note in report["notes"])
    assert "round" in text_of(report)
    assert "withheld" in render_page(report, draw_figures(report))


def test_the_floor_is_an_option_of_report(
    recorded: Run, windows: list[tuple[int, int]], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(RECORDED, path, ignore=shutil.ignore_patterns("baseline"))
    lossy = losing(recorded, ("map_full", windows[1][0] + MS, windows[1][0] + 2 * MS, 1000))
    (path / "run.json").write_text(json.dumps(lossy.meta))

    def withheld(*options: str) -> int:
        done = CliRunner().invoke(ztprobe, ["report", str(path), "--json", *options])
        assert done.exit_code == 0, done.output
        return int(json.loads(done.output)["rounds_withheld"])

    assert withheld() == 2  # also the round before: a connection's burst may have been its
    assert withheld("--coverage-floor", "50") == 0
    assert withheld("--coverage-floor", "100") == 2
    assert CliRunner().invoke(ztprobe, ["report", str(path), "--coverage-floor", "101"]).exit_code != 0


def test_a_run_without_its_baseline_has_no_overhead(tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(RECORDED, path, ignore=shutil.ignore_patterns("baseline"))
    done = CliRunner().invoke(ztprobe, ["report", str(path), "--json"])
    assert done.exit_code == 0 and json.loads(done.output)["overhead"] is None


def test_a_damaged_baseline_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(RECORDED, path)
    (path / "baseline" / "events" / "bursts.parquet").unlink()
    done = CliRunner().invoke(ztprobe, ["report", str(path)])
    assert done.exit_code != 0
    assert "baseline/events/bursts.parquet: is missing" in str(done.exception)
