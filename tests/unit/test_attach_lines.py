"""Logs that grow while a trace is attached: files, rotated and cut off, pipes; and the rounds in them."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from ztprobe.attach.lines import Lines
from ztprobe.attach.rounds import Rounds
from ztprobe.errors import UsageError, WorkloadError
from ztprobe.frameworks.json_events import JsonEvents


def _texts(lines: Lines) -> list[bytes]:
    return [line for line, _ in lines.fresh()]


def _event(name: str, number: int | None, at_ns: int, **more: object) -> bytes:
    record = {"event": name, "round": number, "time_unix_ns": at_ns, "time_monotonic_ns": at_ns, **more}
    return json.dumps(record).encode() + b"\n"


def test_only_what_comes_is_read_and_lines_are_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    with Lines(str(log)) as lines:
        assert _texts(lines) == []
        with log.open("ab") as stream:
            stream.write(b"one\r\ntw")
            stream.flush()
            before_ns = time.monotonic_ns()
            ((line, at_ns),) = lines.fresh()
            assert (line, before_ns <= at_ns <= time.monotonic_ns()) == (b"one", True)
            stream.write(b"o\n")
        assert _texts(lines) == [b"two"]


def test_a_rotated_log_goes_on_in_the_new_file_and_one_cut_off_begins_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"")
    with Lines(str(log)) as lines:
        log.write_bytes(b"one\n")
        assert _texts(lines) == [b"one"]
        log.rename(tmp_path / "log.1")
        log.write_bytes(b"two\n")
        assert _texts(lines) + _texts(lines) == [b"two"]
        os.truncate(log, 0)
        with log.open("ab") as stream:
            stream.write(b"3\n")
        assert _texts(lines) == [b"3"]


def test_a_pipe_is_read_until_its_writer_has_gone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with Lines(str(pipe)) as lines:
        assert _texts(lines) == []
        writer = threading.Thread(target=lambda: pipe.open("wb").write(b"one\ntwo\n"))
        writer.start()
        writer.join()
        found: list[bytes] = []
        give_up = time.monotonic() + 10
        while len(found) < 2 and time.monotonic() < give_up:
            found += _texts(lines)
        assert found == [b"one", b"two"]


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        Lines(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="is a directory"):
        Lines(str(tmp_path))


def test_rounds_that_began_before_the_attachment_are_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"")
    with Lines(str(log)) as lines:
        rounds = Rounds(lines, "generic")
        with log.open("ab") as stream:
            stream.write(_event("round_start", 4, 900) + _event("round_end", 4, 1100))
            stream.write(b"INFO: anything\n" + _event("note", None, 1150))
            stream.write(_event("round_start", 5, 1200) + _event("round_end", 5, 1700))
        assert rounds.read(1000) == [(5, 5e-7)]
        assert [event["event"] for event in rounds.events] == ["note", "round_start", "round_end"]
        assert rounds.ended == 1
        assert rounds.rounds_from().source == "events"


def test_events_that_are_none_of_ours_are_refused_without_quoting_them() -> None:
    source = JsonEvents()
    source.take(b'{"event": "metrics", "secret": 1}', 1)
    source.take(b'{"level": "info", "event": 3}', 1)
    assert not source.recognised
    with pytest.raises(WorkloadError, match="round_start: time_unix_ns is None") as refused:
        source.take(b'{"event": "round_start", "secret": "hunter2"}', 1)
    assert "hunter2" not in str(refused.value)


def test_without_a_log_rounds_are_the_traffics() -> None:
    rounds = Rounds(None, "auto")
    assert rounds.read(0) == []
    assert rounds.rounds_from().source == "traffic"
