"""The table in the terminal, from made-up runs."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from analysis.report.report import build_report
from analysis.report.text_report import WIDTH, print_report
from analysis.report.wording import human_time, setting_pairs
from tests.unit.synthetic_report import make_report, text_of
from tests.unit.synthetic_run import baseline_pair, make_ledger, make_run


@pytest.fixture
def report() -> dict[str, Any]:
    return make_report()


def test_what_was_measured_where_nothing_was_asked_for(report: dict[str, Any]) -> None:
    report["emulation"] |= {"profile": "net0", "backend": "none", "requested": {}}
    report["emulation"]["measured"] = {"delay_ms": 0.0104}
    assert "emulated          net0: nothing (measured delay 0.0104 ms)" in text_of(report)


def test_what_falls_into_few_rounds_has_its_mean_beside_the_median(report: dict[str, Any]) -> None:
    """A share is of means, so "0 ms, 0.5 %" alone would contradict itself."""
    text = text_of(report)
    assert " ".join(text.splitlines()[1].split()[:4]) == "component median/round mean/round of"
    (evaluation,) = [line for line in text.splitlines() if line.startswith("  evaluation")]
    assert " ".join(evaluation.split()[1:7]) == "0 ms 26.7 ms 0.5 %"


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
