"""What a report says of communication to people: decisions, timeouts, clients that nobody can watch."""

from __future__ import annotations

import io
from typing import Any

import pytest

from analysis.report.communication_words import client_columns, communication_lines
from analysis.report.figures import draw_figures
from analysis.report.html import render_page
from analysis.report.text_report import print_report
from analysis.rounds.timeouts import timeout_rows
from tests.schemas import problems
from tests.unit.test_flows import report

SECOND = 1_000_000_000


def told(**changes: Any) -> dict[str, Any]:
    """Of the recorded run, with changes."""
    return {**report()["communication"], **changes}


def words(label: str, **changes: Any) -> list[str]:
    """All lines below a label."""
    found, inside = [], False
    for name, sentence in communication_lines(told(**changes)):
        inside = name == label or (inside and not name)
        found += [sentence] if inside else []
    return found


@pytest.mark.parametrize(
    ("because", "ties", "expected"),
    [
        ("polling", 0, "; what it spends more on than the others is polling, 605 ms a round"),
        (
            "server",
            0,
            "; nothing of its own takes it longer: the server keeps it waiting 605 ms a round longer than "
            "the others",
        ),
        (None, 2, " (2 of them by less than 1 ms); nothing takes it longer than the others in the mean"),
    ],
)
def test_why_a_client_decides(because: str | None, ties: int, expected: str) -> None:
    decides = {"client": "client-5", "rounds": 2, "of": 5, "ties": ties, "because": because, "more_s": 0.605}
    assert words("who decides", decides=decides) == [f"client-5 decides 2 of 5 rounds{expected}"]


def test_every_timeout_is_told_and_a_near_one_is_a_warning() -> None:
    longest_ns = {"part": 16 * SECOND, "message": 20 * SECOND}
    rows = timeout_rows("flower", "1.42.0", longest_ns)
    said = words("timeouts", timeouts=rows)
    assert said[0].startswith("The timeout for HTTP silence (30 s) is 1.9 times what was measured")
    assert "; it cannot be set; send less or faster." in said[0]
    assert said[1] == (
        "parts of a message that is pushed: 180 s; one request and its answer, with at most one part of a "
        "message in it took up to 16.0 s, so 11 times as long would fit"
    )
    # What bounds nothing that was seen has nothing to be held against.
    assert len(said) == sum(row["margin"] is not None for row in rows) == 3


def test_without_known_timeouts_there_is_what_to_hold_against_ones_own() -> None:
    longest = {"part_s": 1.0, "message_s": 2.5, "exchange_s": 30.0}
    assert words("timeouts", timeouts=[], longest=longest) == [
        "the deployment's own are not known. To hold against them: a whole model or update took up to "
        "2.50 s, from a model to its update it took up to 30.0 s"
    ]
    assert words("timeouts", timeouts=[], longest=dict.fromkeys(longest)) == []


def test_what_is_one_sided_names_whom_and_the_bounds() -> None:
    clients = [
        one | {"round_trip_s": 0.1 if one["client"] == "client-2" else None} for one in told()["clients"]
    ]
    (said,) = words("one-sided", one_sided=True, clients=clients)
    assert said.startswith("client-2: on other machines, where nobody watches.")
    assert "between nothing and all of it, 100 ms at most. An agent there would tell" in said
    assert words("one-sided") == []


def test_the_table_has_every_client_and_the_columns_in_which_something_is() -> None:
    assert [part for part, _ in client_columns(told())] == [
        *("communication", "transfer", "polling", "hubs", "process_starts", "training")
    ]
    assert problems("report", report()) == []
    printed = io.StringIO()
    print_report(report(), printed)
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    (head,) = (number for number, line in enumerate(lines) if line.startswith("median/round, client"))
    assert [line.split()[0] for line in lines[head + 1 : head + 3]] == ["client-1", "client-2"]
    assert "not seen of 2 connections that were there before the trace; seen of 4" in printed.getvalue()


def test_the_page_has_each_round_of_each_client() -> None:
    page = render_page(report(), draw_figures(report()))
    assert "Every client of every round" in page
    _, _, rounds = page.partition("Every client of every round")
    assert rounds.partition("</table>")[0].count("client-2</td>") == len(report()["rounds"])
    assert "Connection set-up: not seen of 2 connections" in page
