"""The workload's options in whole runs of its processes: what goes over the wire, what is logged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fl import wire
from fl.compression import ENCODINGS, body_bytes
from fl.secure.messages import wire_bytes
from fl.secure.turns import SecureTurns
from fl.shapes import size_of
from fl.stream import ClientStream
from fl.wire import Kind
from tests.e2e.fl_processes import Process, Start, start_client, start_server

pytestmark = pytest.mark.long

SIZE = size_of("cnn")


def whole_run(
    start: Start,
    *,
    clients: int = 3,
    rounds: int = 2,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> tuple[Process, list[Process]]:
    common = {
        "FL_CLIENTS": str(clients),
        "FL_ROUNDS": str(rounds),
        "FL_MAX_SAMPLES": "64",
        "FL_OPTIONS": json.dumps(options),
        **(env or {}),
    }
    server, address = start_server(start, **common)
    processes = [start_client(start, i, address, **common) for i in range(clients)]
    assert [p.wait() for p in (server, *processes)] == [0] * (clients + 1), server.stderr
    return server, processes


def of(process: Process, event: str) -> list[dict[str, Any]]:
    return [e for e in process.events if e["event"] == event]


@pytest.mark.parametrize("name", ["fp16", "int8", "top-k"])
def test_a_compressed_run(start: Start, name: str) -> None:
    server, _ = whole_run(start, compression=name)
    received = {e["body_bytes"] for e in of(server, "update_received")}
    assert received == {body_bytes(ENCODINGS[name], SIZE, 12_000)}
    assert of(server, "run_start")[0]["config"]["options"]["compression"] == name
    assert of(server, "run_start")[0]["data_reader"] == "scikit-learn"


@pytest.mark.parametrize("kind", ["fedprox", "fedadagrad", "fedadam", "fedyogi"])
def test_an_algorithm(start: Start, kind: str) -> None:
    server, _ = whole_run(start, algorithm=kind)
    losses = [e["loss"] for e in of(server, "evaluate_end")]
    assert losses[1] < losses[0]


def test_krum_leaves_the_attacker_out_and_says_whom_it_took(start: Start) -> None:
    server, _ = whole_run(start, clients=5, aggregation="krum", attack="scale")
    chosen = [e["client_id"] for e in of(server, "update_chosen")]
    assert len(chosen) == 2
    assert "fl-client-4" not in chosen
    looks = of(server, "update_inspected")
    assert [e["client_id"] for e in looks if e["unusual"]] == ["fl-client-4"] * 2
    assert {e["round"] for e in looks} == {1, 2}


def test_too_few_updates_for_the_aggregate_end_the_run(start: Start) -> None:
    common = {"FL_CLIENTS": "5", "FL_OPTIONS": '{"aggregation": "krum"}', "FL_ROUND_DEADLINE_S": "3"}
    server, address = start_server(start, **common)
    for index in range(4):
        start_client(start, index, address, **common, FL_MAX_SAMPLES="32")
    assert server.wait() == 1
    assert server.stderr == "fl-server: round 1: Krum with f = 1 needs 5 updates, there are 4\n"


def test_synthetic_clients(start: Start) -> None:
    server, processes = whole_run(
        start, clients=4, client="synthetic", synthetic_compute_ms=40.0, compression="fp16"
    )
    for process in processes:
        instants = {(e["event"], e["round"]): e["time_monotonic_ns"] for e in process.events}
        assert instants["train_end", 2] - instants["train_start", 2] >= 40e6
    assert len(of(server, "update_received")) == 8


def test_options_that_differ_between_server_and_client(start: Start) -> None:
    server, address = start_server(start, FL_CLIENTS="1", FL_ROUND_DEADLINE_S="3")
    client = start_client(start, 0, address, FL_CLIENTS="1", FL_OPTIONS='{"compression": "int8"}')
    assert client.wait() == 1
    assert "UPDATE is INT8, expected FLOAT32: FL_OPTIONS differ" in client.stderr
    assert server.wait() == 1


def test_differential_privacy(start: Start) -> None:
    server, _ = whole_run(start, privacy="dp", dp_epsilon=50.0)
    spent = of(server, "privacy_spent")
    assert [e["round"] for e in spent] == [1, 2]
    assert spent[0]["epsilon"] < spent[1]["epsilon"] <= 50
    assert [e["clipped_by_server"] for e in spent] == [0, 0]  # honest clients have clipped


SECURE = {"secure_aggregation": "masks", "secure_threshold": 3, "secure_phase_s": 2.0}


def test_secure_aggregation(start: Start) -> None:
    plain, _ = whole_run(start, clients=4)
    expected = [e["loss"] for e in of(plain, "evaluate_end")]
    plain.out.unlink()  # the next run's go by the same names
    server, _ = whole_run(start, clients=4, **SECURE)
    predicted = wire_bytes(clients=4, size=SIZE)
    assert {e["body_bytes"] + 88 for e in of(server, "update_received")} == {predicted["MASKED"]}
    came = {(e["kind"], e["body_bytes"] + 88) for e in of(server, "message_received")}
    assert came == {(kind, predicted[kind]) for kind in ("ADVERTISE", "SHARES", "UNMASK")}
    assert [e["kind"] for e in of(server, "exchange_end") if e["round"] == 2] == [
        "ADVERTISE",
        "SHARES",
        "MASKED",
        "UNMASK",
    ]
    assert all(e["dropped"] == [] for e in of(server, "secure_sum"))
    # The same seed, the same training: the mean differs by the quantisation's steps alone.
    assert [e["loss"] for e in of(server, "evaluate_end")] == pytest.approx(expected, rel=1e-4)


def test_secure_aggregation_with_a_connection_per_round_and_privacy(start: Start) -> None:
    common = {"FL_RECONNECT": "1", "FL_MODEL": "narrow"}
    server, _ = whole_run(start, clients=4, env=common, **SECURE, privacy="dp", client="synthetic")
    assert [e["clipped_by_server"] for e in of(server, "privacy_spent")] == [None, None]


@pytest.mark.parametrize("silent_before", ["ADVERTISE", "SHARES", "MASKED", "UNMASK"])
def test_a_client_that_drops_out_of_secure_aggregation(start: Start, silent_before: str) -> None:
    options = json.dumps(SECURE | {"client": "synthetic", "synthetic_compute_ms": 1})
    common = {"FL_CLIENTS": "4", "FL_ROUNDS": "1", "FL_MODEL": "narrow", "FL_OPTIONS": options}
    server, address = start_server(start, **common, FL_ROUND_DEADLINE_S="4")
    processes = [start_client(start, i, address, **common) for i in range(3)]
    quit_secure_round(address, "fl-client-9", silent_before)
    assert [p.wait() for p in (server, *processes)] == [0] * 4, server.stderr
    (summed,) = of(server, "secure_sum")
    assert summed["clients"] == (4 if silent_before == "UNMASK" else 3)
    assert summed["dropped"] == (["fl-client-9"] if silent_before in ("SHARES", "MASKED") else [])
    ended = {e["kind"]: e["clients"] for e in of(server, "exchange_end")}
    assert ended[silent_before] == 3


def quit_secure_round(address: str, name: str, silent_before: str) -> None:
    """Take part in a round as a client does, up to a message; then leave."""
    turns, stream = SecureTurns(name, 4), ClientStream(address, 0)
    try:
        stream.send(wire.encode(Kind.HELLO, 0, client_id=name), lambda: None)
        while True:
            message = wire.decode(stream.receive())
            if ANSWERS[message.kind] == silent_before:
                return
            if message.kind is Kind.INBOX:
                delta = np.full(size_of("narrow"), 0.01, dtype=np.float32)
                stream.send(turns.masked(message, delta, 1), lambda: None)
            else:
                stream.send(turns.answer(message), lambda: None)
    finally:
        stream.close()


ANSWERS = {Kind.MODEL: "ADVERTISE", Kind.KEYS: "SHARES", Kind.INBOX: "MASKED", Kind.SURVIVORS: "UNMASK"}


def test_secure_aggregation_below_the_threshold(start: Start) -> None:
    options = json.dumps(SECURE | {"secure_threshold": 4, "client": "synthetic"})
    common = {"FL_CLIENTS": "4", "FL_ROUNDS": "1", "FL_MODEL": "narrow", "FL_OPTIONS": options}
    server, address = start_server(start, **common, FL_ROUND_DEADLINE_S="10")
    processes = [start_client(start, i, address, **common) for i in range(3)]
    quit_secure_round(address, "fl-client-9", "SHARES")
    assert server.wait() == 1
    assert server.stderr == (
        "fl-server: round 1: 3 clients answered with SHARES, secure aggregation needs 4:"
        " nothing of their updates can be read\n"
    )
    assert [p.wait() for p in processes] == [1, 1, 1]


def test_one_side_without_secure_aggregation(start: Start) -> None:
    server, address = start_server(start, FL_CLIENTS="2", FL_ROUND_DEADLINE_S="3")
    for index in range(2):
        client = start_client(
            start, index, address, FL_CLIENTS="2", FL_OPTIONS='{"secure_aggregation": "masks"}'
        )
    assert client.wait() == 1
    assert "ADVERTISE instead of UPDATE: FL_OPTIONS differ" in client.stderr
    assert server.wait() == 1
