"""Deadlines of gRPC calls, by bytes that a grpcio client sent, beside the calls that were seen."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd

from analysis.evidence.values import Endpoint, wire_between
from analysis.flows.deadlines import deadline_rows
from analysis.flows.turns import Channel, Turn
from analysis.rounds.timeouts import timeout_rows, warnings_of
from tests.turns import said

S = 1_000_000_000
# Of grpcio 1.85: the first call of a channel, and the second, cut short as the probes cut it.
FIRST = (
    b"\x00\x00\x00\x04\x01\x00\x00\x00\x00\x00\x00\xef\x01\x04\x00\x00\x00\x01@\x05:path\x1e"
    b"/flwr.proto.Fleet/PullMessages@\n:authority\x0f127.0.0.1:36457\x83\x86@\x0ccontent-type\x10application/grpc"
    b"@\x02te\x08trailers@\x14grpc-accept-encoding\x17identity, deflate, gzip@\x0cgrpc-timeout\x051500m"
    b"@\nuser-agent0grpc-python"
)
SECOND = b"\x00\x00\x1c\x01\x04\x00\x00\x00\x03\xc4\xc3\x83\x86\xc2\xc1\xc0@\x0cgrpc-timeout\x051510m\xbf"
OTHER = FIRST.replace(b"\x1e/flwr.proto.Fleet/PullMessages", b"\x0e/fl.Other/Push").replace(
    b"\x051500m", b"\x023S"
)
METHOD = "/flwr.proto.Fleet/PullMessages"


def turn(asks: bool, first_s: float, last_s: float) -> Turn:
    key = wire_between(Endpoint("10.0.0.1", 50051), Endpoint("10.0.0.2", 40000))
    return dataclasses.replace(said(asks, first_s * 1e3, last_s * 1e3), key=key)


def tables(*payloads: bytes) -> dict[str, pd.DataFrame]:
    """Of one connection, five seconds apart."""
    ends = {"local": "10.0.0.1", "local_port": 50051, "remote": "10.0.0.2", "remote_port": 40000}
    connection = {"connection": 7, "pod": "n", "opened_ns": 1, "first_seq": 0, "ts_ns": 1, **ends}
    packets = [
        {"connection": 7, "ts_ns": number * 5 * S, "data": data} for number, data in enumerate(payloads)
    ]
    columns = ["connection", "ts_ns", "data"]
    return {"connections": pd.DataFrame([connection]), "packets": pd.DataFrame(packets, columns=columns)}


def rows(*payloads: bytes) -> list[dict[str, Any]]:
    """Calls that begin at 0, 5 and 10 s, and take 0.3, 1 and 9 s."""
    turns = [
        each
        for begun_s, took_s in ((0, 0.3), (5, 1.0), (10, 9.0))
        for each in (turn(True, begun_s, begun_s + 0.1), turn(False, begun_s + 0.2, begun_s + took_s))
    ]
    return deadline_rows(tables(*payloads), [Channel(turns[0].key, 1, turns)])


def test_the_shortest_deadline_of_a_method_is_held_against_its_longest_call() -> None:
    (row,) = rows(FIRST, SECOND)
    assert row["name"] == f"calls of {METHOD}"
    assert (row["limit_s"], row["longest_s"], row["margin"]) == (1.5, 1.0, 1.5)
    (warning,) = warnings_of(timeout_rows("generic", None, {}, [row]))
    assert METHOD in warning and "(1.5 s) is 1.5 times" in warning and "timeout=..." in warning
    # What takes longer on the same connection may be a call of another kind.
    (row,) = rows(FIRST)
    assert row["margin"] == 5 and not warnings_of([row])


def test_calls_whose_name_was_not_seen_are_told_apart() -> None:
    """A connection that is older than the trace has said it before; of two, a number may be either."""
    (row,) = rows(SECOND)
    assert (row["name"], row["limit_s"]) == ("gRPC calls", 1.51)
    found = {row["name"]: row["limit_s"] for row in rows(FIRST, OTHER, SECOND)}
    assert found == {"gRPC calls": 1.51, "calls of /fl.Other/Push": 3, f"calls of {METHOD}": 1.5}


def test_what_is_cut_short_or_no_deadline_tells_none() -> None:
    whole = FIRST.index(b"1500m")
    assert rows() == [] and rows(FIRST[:whole], b"POST / HTTP/1.1\r\ngrpc-timeout: 5S\r\n") == []
    assert rows(FIRST.replace(b"1500m", b"1500x")) == []
