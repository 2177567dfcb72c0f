"""Where streams meet rounds, without gRPC: late, missing, repeated and superseded clients."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from fl import wire
from fl.errors import WireError
from fl.events import EventLog
from fl.rendezvous import Rendezvous
from fl.wire import Encoding, Kind, Message


class Meeting:
    """A rendezvous with its log, and clients as futures."""

    def __init__(self, clients: int, pool: ThreadPoolExecutor) -> None:
        self.stream = io.StringIO()
        self.meeting = Rendezvous(clients, EventLog(self.stream))
        self.pool = pool

    def send(
        self,
        kind: Kind,
        client: str,
        round_number: int = 0,
        stream: int = 0,
        gone: threading.Event | None = None,
    ) -> Future[bytes | None]:
        body = np.float32([round_number]) if kind is Kind.UPDATE else None
        raw = wire.encode(
            kind,
            round_number,
            client_id=client,
            num_examples=10 if body is not None else 0,
            body=body,
            encoding=Encoding.OPAQUE if kind >= Kind.ADVERTISE else Encoding.FLOAT32,
        )
        message = wire.decode(raw)
        is_open = (lambda: True) if gone is None else (lambda: not gone.is_set())
        return self.pool.submit(self.meeting.exchange, message, stream, is_open)

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == name]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def soon() -> float:
    return time.monotonic() + 5


def test_two_rounds_with_two_clients(pool: ThreadPoolExecutor) -> None:
    m = Meeting(2, pool)
    answers = {c: m.send(Kind.HELLO, c) for c in ("a", "b")}
    assert m.meeting.wait_for_clients(5) == ["a", "b"]
    for number in (1, 2):
        model = b"model%d" % number
        m.meeting.open_round(number, model)
        for client, answer in answers.items():
            assert answer.result(5) is model  # the same bytes object for everybody
            answers[client] = m.send(Kind.UPDATE, client, number)
        m.meeting.wait_for_updates(soon())
        assert [(u.client_id, u.body[0]) for u in m.meeting.close_round()] == [("a", number), ("b", number)]
    m.meeting.finish(2)
    for answer in answers.values():
        assert wire.decode(answer.result(5) or b"").kind is Kind.DONE
    assert len(m.events("update_received")) == 4
    assert not m.events("client_missing")


def test_a_deadline_ends_the_wait_and_names_who_is_missing(pool: ThreadPoolExecutor) -> None:
    m = Meeting(2, pool)
    hello = {c: m.send(Kind.HELLO, c) for c in ("a", "b")}
    m.meeting.wait_for_clients(5)
    m.meeting.open_round(1, b"m1")
    assert hello["b"].result(5) == b"m1"
    a = m.send(Kind.UPDATE, "a", 1)
    started = time.monotonic()
    m.meeting.wait_for_updates(started + 0.2)
    assert 0.2 <= time.monotonic() - started < 2
    assert [u.client_id for u in m.meeting.close_round()] == ["a"]
    assert [e["client_id"] for e in m.events("client_missing")] == ["b"]
    # b finishes round 1 while round 2 runs: logged, not counted, and it joins round 2 at once.
    m.meeting.open_round(2, b"m2")
    assert a.result(5) == b"m2"
    assert m.send(Kind.UPDATE, "b", 1).result(5) == b"m2"
    assert [(e["client_id"], e["round"]) for e in m.events("update_late")] == [("b", 1)]
    last = [m.send(Kind.UPDATE, c, 2) for c in ("a", "b")]
    m.meeting.wait_for_updates(soon())
    assert len(m.meeting.close_round()) == 2
    m.meeting.finish(2)
    assert all(answer.result(5) for answer in last)


def test_a_restarted_client_gets_the_open_round_and_its_old_stream_gives_up(pool: ThreadPoolExecutor) -> None:
    m = Meeting(2, pool)
    old = m.send(Kind.HELLO, "a", stream=1)
    new = m.send(Kind.HELLO, "a", stream=2)
    assert old.result(5) is None
    other = m.send(Kind.HELLO, "b", stream=3)
    m.meeting.wait_for_clients(5)
    m.meeting.open_round(1, b"m1")
    assert new.result(5) == other.result(5) == b"m1"
    assert m.send(Kind.HELLO, "a", stream=4).result(5) == b"m1"
    m.meeting.finish(1)


def test_a_second_update_of_a_round_is_not_counted_twice(pool: ThreadPoolExecutor) -> None:
    m = Meeting(1, pool)
    m.send(Kind.HELLO, "a")
    m.meeting.wait_for_clients(5)
    m.meeting.open_round(1, b"m1")
    first = m.send(Kind.UPDATE, "a", 1, stream=1)
    m.meeting.wait_for_updates(soon())
    second = m.send(Kind.UPDATE, "a", 1, stream=2)
    assert first.result(5) is None
    assert len(m.meeting.close_round()) == 1
    assert len(m.events("update_late")) == 1
    m.meeting.finish(1)
    assert second.result(5) is not None


def test_a_stream_that_is_gone_is_not_waited_for(pool: ThreadPoolExecutor) -> None:
    m = Meeting(1, pool)
    gone = threading.Event()
    answer = m.send(Kind.HELLO, "a", gone=gone)
    m.meeting.wait_for_clients(5)
    assert not answer.done()
    gone.set()
    m.meeting.wake(0)
    assert answer.result(5) is None


def test_an_arrival_wakes_nobody_who_waits_for_something_else(pool: ThreadPoolExecutor) -> None:
    m = Meeting(3, pool)
    looked: list[float] = []

    def is_open() -> bool:
        looked.append(time.monotonic())
        return True

    hello = wire.decode(wire.encode(Kind.HELLO, 0, client_id="a"))
    waiting = pool.submit(m.meeting.exchange, hello, 0, is_open)
    while not m.events("client_ready"):
        time.sleep(0.001)
    others = [m.send(Kind.HELLO, client, stream=number) for number, client in enumerate("bc", start=1)]
    assert m.meeting.wait_for_clients(5) == ["a", "b", "c"]
    m.meeting.wake(1)
    time.sleep(0.05)
    assert len(looked) == 1
    m.meeting.open_round(1, b"m1")
    assert [one.result(5) for one in (waiting, *others)] == [b"m1"] * 3
    assert len(looked) == 2


def test_nobody_comes() -> None:
    assert Rendezvous(3, EventLog(io.StringIO())).wait_for_clients(0.05) == []


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Message(kind=Kind.MODEL, round=1, client_id="a"), "sent MODEL"),
        (Message(kind=Kind.HELLO, round=0), "no client id"),
        (Message(kind=Kind.UPDATE, round=1, client_id="a"), "no examples"),
    ],
)
def test_what_no_client_sends(message: Message, says: str) -> None:
    with pytest.raises(WireError, match=says):
        Rendezvous(1, EventLog(io.StringIO())).exchange(message, 0, lambda: True)


def test_a_pod_that_replaces_a_dead_one_takes_its_place(pool: ThreadPoolExecutor) -> None:
    m = Meeting(1, pool)
    gone = threading.Event()
    dead = m.send(Kind.HELLO, "fl-client-0-abcde", gone=gone)
    m.meeting.wait_for_clients(5)
    gone.set()
    m.meeting.wake(0)
    assert dead.result(5) is None
    replacement = m.send(Kind.HELLO, "fl-client-0-fghij")
    m.meeting.open_round(1, b"m1")
    assert replacement.result(5) == b"m1"
    assert m.meeting.wait_for_clients(5) == ["fl-client-0-fghij"]


def test_one_client_too_many(pool: ThreadPoolExecutor) -> None:
    m = Meeting(1, pool)
    m.send(Kind.HELLO, "a")
    m.meeting.wait_for_clients(5)
    with pytest.raises(WireError, match="client 2 of 1"):
        m.send(Kind.HELLO, "b").result(5)
    m.meeting.finish(1)


def test_exchanges_within_a_round(pool: ThreadPoolExecutor) -> None:
    m = Meeting(3, pool)
    answers = {c: m.send(Kind.HELLO, c) for c in ("a", "b", "c")}
    m.meeting.wait_for_clients(5)
    m.meeting.open_round(1, b"model", Kind.ADVERTISE)
    for client in answers:
        assert answers[client].result(5) == b"model"
        answers[client] = m.send(Kind.ADVERTISE, client, 1)
    m.meeting.wait_for_updates(soon())
    assert [x.client_id for x in m.meeting.close_exchange()] == ["a", "b", "c"]
    # c is left out of the next exchange: it is not waited for, and gets nothing.
    m.meeting.open_exchange({"a": b"to a", "b": b"to b"}, Kind.SHARES)
    assert [answers[c].result(5) for c in ("a", "b")] == [b"to a", b"to b"]
    assert not answers["c"].done()
    # b has died and comes back with nothing in its hands: it is out of the round as well.
    again = m.send(Kind.HELLO, "b", stream=99)
    while not m.events("client_ready")[3:]:
        time.sleep(0.01)
    last = m.send(Kind.SHARES, "a", 1)
    m.meeting.wait_for_updates(soon())
    assert [x.client_id for x in m.meeting.close_round()] == ["a"]
    assert [e["client_id"] for e in m.events("client_missing")] == ["b", "c"]
    m.meeting.open_round(2, b"second", Kind.ADVERTISE)
    assert {x.result(5) for x in (again, last, answers["c"])} == {b"second"}
    m.meeting.finish(2)


def test_the_wrong_message_for_an_exchange_is_late(pool: ThreadPoolExecutor) -> None:
    m = Meeting(1, pool)
    m.send(Kind.HELLO, "a")
    m.meeting.wait_for_clients(5)
    m.meeting.open_round(1, b"model", Kind.ADVERTISE)
    # As the answer to what it has sent it gets the model again, which it has not answered.
    assert m.send(Kind.SHARES, "a", 1).result(5) == b"model"
    assert [(e["kind"], e["round"]) for e in m.events("message_late")] == [("SHARES", 1)]
    assert m.meeting.close_exchange() == []
    m.meeting.finish(1)
