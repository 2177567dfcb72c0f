"""Frameworks' logs become round events: real excerpts, clocks of every kind, and what is no log of theirs."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from ztprobe.frameworks.flower import BATCHED_NS, FlowerLog
from ztprobe.frameworks.log_readers import round_source, wanted_lines
from ztprobe.frameworks.nvflare import NvflareLog
from ztprobe.frameworks.source import RoundSource

DATA = Path(__file__).parents[1] / "data" / "frameworks"
SECOND_NS = 1_000_000_000
NOW_NS = time.monotonic_ns()
EVENT = {"event": "round_start", "round": 1, "time_unix_ns": 5, "time_monotonic_ns": 7}


def events_of(source: RoundSource, lines: list[bytes], received_ns: int = NOW_NS) -> list[dict[str, Any]]:
    """Lines received a second after each other."""
    for i, line in enumerate(lines):
        source.take(line, received_ns + i * SECOND_NS)
    return source.fresh()


def names(events: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(event["event"], event["round"]) for event in events]


@pytest.mark.parametrize("version", ["1.42", "1.38"])
def test_what_flwr_run_streamed(version: str) -> None:
    source = FlowerLog()
    events = events_of(source, (DATA / f"flower-{version}-run.log").read_bytes().splitlines())
    inside = ["round_start", "send_start", "wait_end", "aggregate_end", "evaluate_end", "round_end"]
    assert names(events) == [(name, number) for number in (1, 2) for name in inside]
    assert events[0]["of"] == 2
    assert events[2]["results"] == 2 and events[2]["failures"] == 0
    assert all(event["time_from"] == "received" for event in events)
    # Streamed, the lines came up to that much later.
    assert all(event["uncertainty_ns"] >= BATCHED_NS for event in events)
    assert source.rounds_from().uncertainty_ns >= BATCHED_NS and "batches" in source.rounds_from().detail
    assert source.recognised


def test_an_nvflare_servers_console() -> None:
    source = NvflareLog()
    events = events_of(source, (DATA / "nvflare-2.9-server.log").read_bytes().splitlines())
    told = [(event["event"], event["round"]) for event in events if event["event"].startswith("round_")]
    assert told == [(name, number) for number in range(3) for name in ("round_start", "round_end")]
    # The framed words below a line have its time, to the millisecond.
    starts = {event["round"]: event["time_unix_ns"] for event in events if event["event"] == "round_start"}
    assert (starts[1] - starts[0]) // 10**6 == 51_973 - 49_468
    assert all(event["time_from"] == "log" for event in events)
    assert source.rounds_from().uncertainty_ns < 10**7
    results = [(e["round"], e["client_id"]) for e in events if e["event"] == "update_received"]
    assert results == [(number, site) for number in range(3) for site in ("site-1", "site-2")]


def test_an_nvflare_clients_own_transfer_times() -> None:
    lines = (DATA / "nvflare-2.9-client.log").read_bytes().splitlines()
    started = b"2026-11-28 11:14:49,000 - ScatterAndGather - INFO - [identity=x, run=1] - Round 0 started."
    events = events_of(NvflareLog(), [started, *lines])
    transfers = [event for event in events if event["event"] in ("get_task", "submit_update")]
    assert [event["bytes"] for event in transfers] == [1311, 1384, 1807, 1384, 1807]
    assert transfers[0]["duration_ns"] == 88_489_000


def test_scatter_and_gather_says_when_a_round_ends() -> None:
    line = "2026-11-28 11:14:{},000 - ScatterAndGather - INFO - [identity=x, run=1, wf=sag] - Round {} {}."
    said = [(1, 0, "started"), (9, 0, "finished"), (12, 1, "started"), (15, 1, "finished")]
    lines = [line.format(f"{second:02}", number, word).encode() for second, number, word in said]
    events = events_of(NvflareLog(), lines)
    seconds = [(event["time_unix_ns"] - events[0]["time_unix_ns"]) // SECOND_NS for event in events]
    assert seconds == [0, 8, 11, 14]
    as_json = json.dumps(
        {"asctime": "2026-11-28 11:14:01,000", "fullName": "nvflare.x", "message": "Round 4 started."}
    )
    (event,) = events_of(NvflareLog(), [as_json.encode()])
    assert event["event"] == "round_start" and event["round"] == 4


def test_lines_that_were_kept_back_are_known_by_coming_together() -> None:
    source = FlowerLog()
    late_ns = time.monotonic_ns() + 300 * SECOND_NS
    for line in (DATA / "flower-1.42-run.log").read_bytes().splitlines():
        source.take(line, late_ns)
    assert [e["round"] for e in source.fresh() if e["event"] == "round_start"] == [1, 2]
    assert source.rounds_from().uncertainty_ns > 200 * SECOND_NS
    assert "keeps them back" in source.rounds_from().detail


def test_the_received_time_is_of_both_clocks() -> None:
    (event,) = events_of(FlowerLog(read_every_ns=20_000_000), [b"INFO :      [ROUND 1/3]"])
    assert event["time_monotonic_ns"] == NOW_NS
    assert abs(event["time_unix_ns"] - time.time_ns() - (NOW_NS - time.monotonic_ns())) < SECOND_NS
    assert event["uncertainty_ns"] >= 20_000_000


def stamped(line: bytes, form: str, ago_ns: int = 0) -> bytes:
    """The line as its collector would keep it, written ``ago_ns`` before it is received at NOW_NS."""
    unix_ns = time.time_ns() - time.monotonic_ns() + NOW_NS - ago_ns
    seconds, ns = divmod(unix_ns, SECOND_NS)
    # A container in UTC, whatever this machine's zone is.
    stamp = time.strftime(form, time.gmtime(seconds))
    return stamp.replace("NANO", f"{ns:09}").replace("MILLI", f"{ns // 10**6:03}").encode() + line


ROUND = b"\x1b[92mINFO \x1b[0m:      [ROUND 4/9]"


@pytest.mark.parametrize(
    ("form", "precision_ns"),
    [
        ("%Y-%m-%dT%H:%M:%S.NANOZ ", 1),
        ("%Y-%m-%dT%H:%M:%S.NANO+00:00 stdout F ", 1),
        ("%Y-%m-%dT%H:%M:%S+0000 host flower.service[812]: ", SECOND_NS),
        ("%b %d %H:%M:%S.MILLI host flower[812]: ", 10**6),
    ],
)
def test_a_collectors_clock_is_taken(form: str, precision_ns: int) -> None:
    (event,) = events_of(FlowerLog(), [stamped(ROUND, form, ago_ns=3 * SECOND_NS)])
    assert event["time_from"] == "log" and event["round"] == 4
    assert abs(event["time_monotonic_ns"] - (NOW_NS - 3 * SECOND_NS)) <= max(precision_ns, 10**7)
    assert precision_ns <= event["uncertainty_ns"] < precision_ns + 10**7


@pytest.mark.parametrize("zone_minutes", [0, 60, -480, 345])
@pytest.mark.parametrize(
    "form",
    [
        "INFO %Y-%m-%d %H:%M:%S,MILLI:      [ROUND 4/9]",
        "INFO flwr %Y-%m-%d %H:%M:%S,MILLI | strategy.py:207 | [ROUND 4/9]",
        "mine | INFO flwr %Y-%m-%d %H:%M:%S,MILLI | strategy.py:207 | [ROUND 4/9]",
        "{lvl='INFO', time='%Y-%m-%d %H:%M:%S,MILLI', msg='[ROUND 4/9]'}",
    ],
)
def test_flowers_own_clock_in_another_zone(form: str, zone_minutes: int) -> None:
    line = stamped(b"", form, ago_ns=SECOND_NS - zone_minutes * 60 * SECOND_NS)
    (event,) = events_of(FlowerLog(), [line])
    assert event["time_from"] == "log"
    assert abs(event["time_monotonic_ns"] - (NOW_NS - SECOND_NS)) <= 10**7


def test_old_lines_do_not_move_the_zone() -> None:
    source = FlowerLog()
    form = "INFO %Y-%m-%d %H:%M:%S,MILLI:      [ROUND {}/9]"
    old = [stamped(b"", form.format(i + 1), ago_ns=(9 - i) * 3600 * SECOND_NS) for i in range(9)]
    for line in [*old[:8], stamped(b"", form.format(9))]:
        source.take(line, NOW_NS)
    last = source.fresh()[-1]
    assert last["round"] == 9 and abs(last["time_monotonic_ns"] - NOW_NS) <= 10**7


def test_a_second_job_in_the_same_log_counts_on() -> None:
    job = [
        b"INFO :      [ROUND 1/2]",
        b"INFO :      [ROUND 2/2]",
        b"INFO :      Strategy execution finished in 3.00s",
    ]
    events = events_of(FlowerLog(), job + job)
    assert [e["round"] for e in events if e["event"] == "round_start"] == [1, 2, 3, 4]
    assert [e["round"] for e in events if e["event"] == "round_end"] == [1, 2, 3, 4]
    assert [e.get("named") for e in events if e["event"] == "round_start"] == [None, None, 1, 2]


def test_a_round_that_is_open_has_no_end() -> None:
    events = events_of(FlowerLog(), [b"INFO :      [ROUND 1/2]", b"INFO :      [ROUND 2/2]"])
    assert names(events) == [("round_start", 1), ("round_end", 1), ("round_start", 2)]


def test_a_clients_error_is_kept_and_made_printable() -> None:
    lines = [
        b"INFO :      [ROUND 1/2]",
        b"INFO :      aggregate_train: Received 1 results and 1 failures",
        b"INFO :      \t> Received error in reply from node 5487096433386850774: \x1b]0;title\x07 no",
    ]
    error = events_of(FlowerLog(), lines)[-1]
    assert error["event"] == "client_error" and error["node_id"] == "5487096433386850774"
    assert error["reason"].isprintable() and error["reason"].endswith("no")


def test_the_legacy_server() -> None:
    lines = [
        b"INFO :      [ROUND 1]",
        b"INFO :      configure_fit: strategy sampled 2 clients (out of 3)",
        b"INFO :      aggregate_fit: received 2 results and 0 failures",
        b"INFO :      configure_evaluate: strategy sampled 3 clients (out of 3)",
        b"INFO :      aggregate_evaluate: received 3 results and 0 failures",
        b"INFO :      [SUMMARY]",
        b"INFO :      Run finished 1 round(s) in 3.17s",
    ]
    events = events_of(FlowerLog(), lines)
    assert [e["event"] for e in events] == [
        *("round_start", "send_start", "wait_end", "aggregate_end", "evaluate_end", "round_end")
    ]
    assert events[1]["clients"] == 2 and events[1]["clients_connected"] == 3


def test_a_log_that_is_not_flowers() -> None:
    for log in ([b"2026-11-28 10:40:06 GET /index.html 200"], [b"INFO :      [ROUND one]"], []):
        source = FlowerLog()
        assert events_of(source, log) == [] and not source.recognised
    assert "[ROUND" in wanted_lines("flower") and "Round 0" not in wanted_lines("flower")
    assert "[ROUND" in wanted_lines("auto") and "Round 0" in wanted_lines("auto")


def test_garbage_is_survived() -> None:
    noise = random.Random(7)
    for source in (FlowerLog(), NvflareLog(), round_source("auto")):
        for _ in range(300):
            for line in noise.randbytes(noise.randrange(400)).split(b"\n"):
                source.take(line, NOW_NS)
        source.take(b"INFO 9999-99-99 99:99:99,999:      [ROUND 1/2]", NOW_NS)
        source.take(b'{"event": 7}', NOW_NS)
        source.take(b'{"event": ' + b"[" * 50_000, NOW_NS)
        source.take(b"\x1b[" * 50_000, NOW_NS)
        assert all(event["round"] == 1 for event in source.fresh())


def test_whichever_recognises_a_log_reads_it() -> None:
    for line, kind in ((b"INFO :      [ROUND 1/2]", "log"), (json.dumps(EVENT).encode(), "events")):
        source = round_source("auto")
        (event,) = events_of(source, [b"whatever", line])
        assert event["event"] == "round_start" and source.kind == kind and source.recognised
