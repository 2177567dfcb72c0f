"""Who has not reached the server is named in time, and once."""

from __future__ import annotations

import os
import subprocess

from ztprobe.experiment.waiting import NAMED_AFTER_S, STILL_S, Still, Waiting, still_words, words
from ztprobe.process.activity import Activity, activity_of


def ready(client: str) -> dict[str, object]:
    return {"event": "client_ready", "client_id": client}


def test_who_has_not_come_is_named_once_and_within_30_s() -> None:
    assert NAMED_AFTER_S < 30
    waiting = Waiting(["c-0", "c-1", "c-2"], 100.0)
    waiting.take(ready("c-1"))
    waiting.take(ready("c-1"))  # on a new connection
    assert waiting.overdue(119.9) is None
    assert waiting.overdue(120.0) == ["c-0", "c-2"]
    assert waiting.overdue(121.0) is None


def test_nobody_is_named_once_a_round_has_begun() -> None:
    waiting = Waiting(["c-0"], 0.0)
    waiting.take({"event": "round_start", "round": 1})
    assert waiting.overdue(1000.0) is None


def test_a_server_that_does_not_begin_is_named() -> None:
    waiting = Waiting(["c-0"], 0.0)
    waiting.take(ready("c-0"))
    assert waiting.overdue(25.0) == []
    assert "no round has begun after 20 s" in words([], "")


def test_the_words_say_who_and_what_they_said() -> None:
    said = words(["c-0", "c-1", "c-2", "c-3"], "still trying to send to $(SERVER):50051 after 20 s")
    assert said.startswith("c-0, c-1, c-2 and 1 more have not reached the server after 20 s")
    assert said.endswith("c-0 says: still trying to send to $(SERVER):50051 after 20 s")


def open_round() -> Still:
    still = Still(["c-0", "c-1"])
    still.take({"event": "round_start", "round": 3})
    still.take({"event": "update_received", "round": 3, "client_id": "c-1"})
    return still


def test_a_round_in_which_nothing_happens_is_named_once_and_within_30_s() -> None:
    assert STILL_S < 30
    still, done = open_round(), Activity(100.0, 5_000_000)
    assert still.overdue(0.0, done) is None
    assert still.overdue(STILL_S - 0.1, done) is None
    assert still.overdue(STILL_S, Activity(100.1, 5_003_000)) == (3, ["c-0"])
    assert still.overdue(2 * STILL_S, Activity(100.2, 5_006_000)) is None
    said = still_words(3, ["c-0"])
    assert said == "round 3 stands still: no event, no work and no data for 25 s; it waits for c-0"


def test_work_data_and_events_are_progress() -> None:
    for later in (Activity(101.0, 0), Activity(100.0, 40_000), Activity(3.0, 0)):  # the last: a process ended
        still = open_round()
        still.overdue(0.0, Activity(100.0, 0))
        assert still.overdue(20.0, later) is None
        assert still.overdue(40.0, later) is None
        assert still.overdue(45.0, later) == (3, ["c-0"])
    still = open_round()
    still.overdue(0.0, Activity(100.0, 0))
    still.take({"event": "update_late"})
    assert still.overdue(24.0, Activity(100.0, 0)) is None
    assert still.overdue(26.0, Activity(100.0, 0)) is None


def test_what_stands_still_twice_is_named_twice() -> None:
    still = open_round()
    still.overdue(0.0, Activity(0.0, 0))
    assert still.overdue(30.0, Activity(0.0, 0)) == (3, ["c-0"])
    assert still.overdue(60.0, Activity(9.0, 0)) is None
    assert still.overdue(80.0, Activity(9.0, 0)) is None
    assert still.overdue(90.0, Activity(9.0, 0)) == (3, ["c-0"])


def test_between_rounds_nobody_is_waited_for() -> None:
    still = open_round()
    still.take({"event": "round_end", "round": 3})
    still.overdue(0.0, Activity(0.0, 0))
    assert still.overdue(100.0, Activity(0.0, 0)) is None


def test_activity_is_counted_and_what_has_ended_is_left_out() -> None:
    before = activity_of([os.getpid()])
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert sum(number * number for number in range(3_000_000)) > 0
    after = activity_of([os.getpid(), ended.pid])
    assert after.cpu_s > before.cpu_s
    assert after.network_bytes >= before.network_bytes
