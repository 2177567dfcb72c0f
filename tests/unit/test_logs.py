"""Logs read while they grow."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztprobe.errors import WorkloadError
from ztprobe.rundir.logs import GrowingLog, read_events


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    log = GrowingLog(path)
    assert log.fresh() == []
    path.write_text('starting\n{"event": "round_start", "round": 1}\n{"event": "rou')
    assert log.fresh() == [{"event": "round_start", "round": 1}]
    assert log.fresh() == []
    with path.open("a") as stream:
        stream.write('nd_end", "round": 1}\n{"no": "event"}\n')
    assert log.fresh() == [{"event": "round_end", "round": 1}]
    assert [event["event"] for event in read_events(path)] == ["round_start", "round_end"]


def test_kubelet_s_words_before_a_line_are_taken_off_and_parts_joined(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_text(
        "2026-01-02T03:04:05.678901234Z stderr F warming up\n"
        '2026-01-02T03:04:05.678901234Z stdout P {"event": "ro\n'
        '2026-01-02T03:04:05.678901235+01:00 stdout F und_start"}\n'
    )
    assert read_events(path) == [{"event": "round_start"}]


def test_a_line_that_only_begins_like_an_event_is_named(tmp_path: Path) -> None:
    (tmp_path / "client.log").write_text('{"event": "x"\n')
    with pytest.raises(WorkloadError, match=r"client\.log: not a JSON event"):
        read_events(tmp_path / "client.log")
