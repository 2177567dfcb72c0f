"""Who has not reached the server is named in time, and once."""

from __future__ import annotations

from ztprobe.experiment.missing_clients import NAMED_AFTER_S, Waiting, words


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
