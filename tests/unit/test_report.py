"""report.json, the table and the page, from made-up runs."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from analysis.ledger.model import COMPONENTS, Ledger
from analysis.report.report import build_report, write_report
from analysis.report.text_report import WIDTH, print_report
from analysis.report.wording import human_time, setting_pairs
from tests.unit.synthetic_run import MS, baseline_pair, make_ledger, make_run, save_run
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import Run


@pytest.fixture
def report() -> dict[str, Any]:
    ledger = make_ledger()
    return build_report(make_run(ledger=ledger), ledger, baseline_pair())


@pytest.fixture
def ledgers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Ledger]:
    """Ledgers by experiment, given instead of built ones."""
    by_name: dict[str, Ledger] = {"net2-sec3": make_ledger(), "net0-sec0": baseline_pair()[1]}

    def build_ledger(run: Run) -> Ledger:
        return by_name[run.name]

    stand_in = ModuleType("analysis.ledger.ledger")
    stand_in.build_ledger = build_ledger  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "analysis.ledger.ledger", stand_in)
    return by_name


def text_of(report: dict[str, Any], **options: Any) -> str:
    stream = io.StringIO()
    print_report(report, stream, **options)
    return stream.getvalue()


def test_what_was_measured_where_nothing_was_asked_for(report: dict[str, Any]) -> None:
    report["emulation"] |= {"profile": "net0", "backend": "none", "requested": {}}
    report["emulation"]["measured"] = {"delay_ms": 0.0104}
    assert "emulated          net0: nothing (measured delay 0.0104 ms)" in text_of(report)


def test_the_contract_holds(report: dict[str, Any]) -> None:
    assert report["schema_version"] == 1
    assert (report["experiment"], report["runtime"]) == ("net2-sec3", "local")
    for one in report["rounds"]:
        assert one.keys() >= {"round", "duration_s", "critical_client", "components", "residual_s"}
        assert sum(one["components"].values()) + one["residual_s"] == pytest.approx(
            one["duration_s"], abs=1e-8
        )
    for part in report["components"].values():
        assert part.keys() >= {"median_s", "p99_s", "share"}
    assert list(report["components"]) == list(COMPONENTS)
    assert report["overhead"]["baseline"] == "net0-sec0"
    assert report["overhead"]["duration"].keys() == {"delta_s", "ci95"}
    assert report["overhead"]["components"].keys() == set(COMPONENTS)
    assert report["emulation"].keys() >= {"profile", "backend", "requested", "measured"}
    assert report["enforcement"].keys() >= {"network_policy", "mtls"}
    assert set(report["loss"].values()) == {0}
    assert len(report["loss"]) == 6
    assert report["coverage"] == 1.0
    assert all(probe.keys() >= {"signal", "hook", "run_count", "run_time_ns"} for probe in report["probes"])
    json.dumps(report, allow_nan=False)


def test_shares_and_overheads_add_up(report: dict[str, Any]) -> None:
    shares = [part["share"] for part in report["components"].values()] + [report["residual"]["share"]]
    assert sum(shares) == pytest.approx(1.0, abs=1e-7)
    overhead = report["overhead"]
    deltas = [part["delta_s"] for part in overhead["components"].values()] + [overhead["residual"]["delta_s"]]
    assert sum(deltas) == pytest.approx(overhead["duration"]["delta_s"], abs=1e-7)
    for part in (*overhead["components"].values(), overhead["duration"]):
        assert part["ci95"][0] <= part["delta_s"] <= part["ci95"][1]


def test_what_falls_into_few_rounds_has_its_mean_beside_the_median(report: dict[str, Any]) -> None:
    """A share is of means, so "0 ms, 0.5 %" alone would contradict itself."""
    text = text_of(report)
    assert " ".join(text.splitlines()[1].split()[:4]) == "component median/round mean/round of"
    (evaluation,) = [line for line in text.splitlines() if line.startswith("  evaluation")]
    assert " ".join(evaluation.split()[1:7]) == "0 ms 26.7 ms 0.5 %"


def test_medians_leave_round_1_out(report: dict[str, Any]) -> None:
    counted = sorted(one["duration_s"] for one in report["rounds"] if one["counted"])
    assert [one["counted"] for one in report["rounds"]] == [False] + [True] * 9
    assert report["rounds_counted"] == 9
    assert report["duration"]["median_s"] == counted[4]


def test_components_follow_the_truth(report: dict[str, Any]) -> None:
    assert report["components"]["transmission"]["median_s"] == pytest.approx(2.4, rel=0.06)
    assert report["overhead"]["components"]["transmission"]["delta_s"] == pytest.approx(2.355, rel=0.05)
    assert report["sub_rows"]["transmission"]["congestion_window"]["median_s"] == pytest.approx(
        1.97, rel=0.06
    )


def test_the_only_round_counts_and_says_so() -> None:
    ledger = make_ledger(rounds=1)
    report = build_report(make_run(ledger=ledger), ledger, baseline_pair())
    assert report["rounds_counted"] == 1
    assert report["duration"]["median_s"] == report["rounds"][0]["duration_s"]
    assert report["overhead"]["duration"]["ci95"] is None
    assert "No interval: 1 round of net2-sec3 and" in report["overhead"]["method"]
    assert any("only round" in note for note in report["notes"])
    assert "too few rounds" in text_of(report)


def test_a_run_without_rounds_is_refused() -> None:
    empty = replace(make_ledger(), rounds=())
    with pytest.raises(RunDirError, match="holds no complete round"):
        build_report(make_run(), empty, None)


def test_p99_appears_with_100_rounds() -> None:
    ledger = make_ledger(rounds=101)
    report = build_report(make_run(ledger=ledger), ledger, None)
    assert report["duration"]["p99_s"] >= report["duration"]["median_s"]
    assert "p99 of a round" in text_of(report)


def test_training_time_is_checked_against_what_clients_logged(report: dict[str, Any]) -> None:
    check = report["compute_check"]
    assert check["pairs"] == 45
    assert check["within_limit"]
    assert check["median_abs_difference_ms"] == pytest.approx(2.5, abs=0.6)


def test_training_time_that_disagrees_is_noted() -> None:
    ledger = make_ledger()
    off = replace(
        ledger,
        rounds=tuple(
            replace(
                one,
                clients=tuple(
                    replace(row, compute_kernel_ns=(row.compute_reported_ns or 0) + 300 * MS)
                    for row in one.clients
                ),
            )
            for one in ledger.rounds
        ),
    )
    report = build_report(make_run(), off, None)
    assert report["compute_check"]["median_abs_difference_ms"] == 300.0
    assert not report["compute_check"]["within_limit"]
    assert any("off by 300.0 ms" in note for note in report["notes"])


def test_connection_setup_is_amortised(report: dict[str, Any]) -> None:
    setup = report["connection_setup"]
    assert setup["amortised_s"] == pytest.approx(setup["median_s"] / 10)
    assert setup["components"]["tls_handshake"]["median_s"] == pytest.approx(0.170, abs=0.01)
    assert setup["clients"][0]["mutual"] == "yes"


def test_time_to_95_percent_counts_from_round_1(report: dict[str, Any]) -> None:
    rounds = report["rounds"]
    assert rounds[9]["accuracy"] >= 0.95 > rounds[4]["accuracy"]
    assert report["accuracy"]["time_to_target_s"] == pytest.approx(
        sum(one["duration_s"] for one in rounds), abs=1e-6
    )


def test_syns_are_counted_per_round() -> None:
    ledger = make_ledger(syn_count=1)
    report = build_report(make_run(ledger=ledger), ledger, None)
    assert [one["syn_count"] for one in report["rounds"]] == [5] * 10


def test_lost_events_and_failed_proofs_are_shouted() -> None:
    failed = {"name": "forbidden: x", "expected": "dropped", "observed": "connected", "passed": False}
    run = make_run(
        loss={"map_full": 3, "reader_behind": 0},
        enforcement={"network_policy_expected": True, "mtls_expected": True, "network_policy": [failed]},
    )
    report = build_report(run, make_ledger(), None)
    assert report["loss"]["map_full"] == 3
    assert report["loss"]["ring_buffer_full"] == 0
    assert report["enforcement"]["network_policy"]["proven"] is False
    text = text_of(report)
    assert "lost: map full 3" in text
    assert "NOT proven: 0 of 1" in text
    assert "FAILED  forbidden: x: expected dropped, saw connected" in text
    assert "expected, but nothing was proven" in text


def test_an_unlike_baseline_is_noted() -> None:
    ledger = make_ledger()
    report = build_report(make_run(options={"clients": 3}), ledger, baseline_pair())
    assert "The baseline differs in --clients: 5 instead of 3." in report["notes"]


def test_the_table_fits_and_says_everything(report: dict[str, Any]) -> None:
    text = text_of(report)
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "\x1b" not in text
    for said in (
        "transmission                         2.42 s      2.42 s    49.8 %     +2.37 s     +2.32 s … +2.43 s",
        "  congestion window",
        "connection set-up",
        "coverage          100.00 % of events seen; none lost on any channel",
        "network policy    in force, proven: 3 of 3",
        "mutual TLS        in force, proven: 2 of 2",
        "net2 by userspace delay line (NFQUEUE): delay 80 ms (measured 80.31 ms)",
        "conditional on",
    ):
        assert " ".join(said.split()) in " ".join(text.split())
    table = lines[: lines.index("")]
    rows = [line for line in table if line.startswith(("server", "compute", "proxy", "round "))]
    assert len({len(line) for line in rows}) == 1, "numbers are right-aligned"
    assert text.rstrip().replace("\n", " ").endswith(report["diagnosis"])


def test_the_table_fits_for_awkward_names() -> None:
    proof = {"name": "allowed: " + "x" * 300, "expected": "a", "observed": "b " * 200, "passed": True}
    run = make_run(
        enforcement={"network_policy_expected": True, "mtls_expected": False, "network_policy": [proof]},
        emulation={
            "profile": "net2",
            "backend": None,
            "requested": None,
            "measured": {"delay_ms": {"fl-server": 1.0}},
        },
    )
    ledger = make_ledger({"compute": 5e6, "transmission": 0.0004})
    text = text_of(build_report(run, ledger, baseline_pair()))
    assert max(map(len, text.splitlines())) <= WIDTH


def test_square_brackets_are_text_not_markup() -> None:
    report = build_report(make_run(ledger=make_ledger()), make_ledger(notes=("[red]kept[/red]",)), None)
    assert "[red]kept[/red]" in text_of(report)


def test_colour_changes_no_word(report: dict[str, Any]) -> None:
    assert re.sub(r"\x1b\[[0-9;]*m", "", text_of(report, colour=True)) == text_of(report, colour=False)


def test_a_reader_that_leaves_is_left_to_the_caller(report: dict[str, Any]) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if text:
                raise BrokenPipeError
            return 0

    with pytest.raises(BrokenPipeError):  # and no SystemExit
        print_report(report, Gone())


def test_without_a_baseline_there_is_no_overhead_column() -> None:
    ledger = make_ledger()
    report = build_report(make_run(ledger=ledger), ledger, None)
    assert report["overhead"] is None
    assert "overhead" not in text_of(report)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (0, "0 ms"), (0.0000001, "0 ms"), (0.00042, "0.42 ms"), (0.16, "160 ms"),
        (0.9994, "999 ms"), (0.99951, "1.00 s"), (1.9, "1.90 s"), (9.9951, "10.0 s"),
        (123.4, "123 s"), (-0.02, "−20.0 ms"),
    ],
)  # fmt: skip
def test_times_have_three_digits_and_a_unit(seconds: float | None, text: str) -> None:
    assert human_time(seconds) == text


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


def test_settings_are_said_once_with_their_unit_and_only_if_there_is_one() -> None:
    said = setting_pairs(
        {"level": 3, "seed": 0},
        {"seed": 0, "data_dir": "", "environment": {}, "reconnect": False, "limits_unavailable": []},
        {"mtu_bytes": 1500, "warm_up_s": 6.338133106, "memory_limits_bytes": {"a/b": 7}, "resumption": None},
    )
    assert said == [
        ("level", "3"),
        ("seed", "0"),
        ("reconnect", "no"),
        ("mtu", "1500 bytes"),
        ("warm up", "6.338 s"),
        ("memory limits (bytes)", "a/b: 7"),
        ("resumption", "–"),
    ]


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

    stand_in = ModuleType("analysis.ledger.ledger")
    stand_in.build_ledger = build_ledger  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "analysis.ledger.ledger", stand_in)
    with pytest.raises(RunDirError, match=r"do not fit together: round 3: 5 ns of components in 4 ns$"):
        write_report(save_run(tmp_path / "run"))
