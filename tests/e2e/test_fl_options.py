"""The workload's options in whole runs of its processes: what goes over the wire, what is logged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fl.compression import ENCODINGS, body_bytes
from fl.shapes import size_of
from tests.e2e.fl_processes import Process, Start, start_client, start_server

SIZE = size_of("cnn")


def whole_run(
    start: Start, *, clients: int = 3, rounds: int = 2, **options: Any
) -> tuple[Process, list[Process]]:
    common = {
        "FL_CLIENTS": str(clients),
        "FL_ROUNDS": str(rounds),
        "FL_MAX_SAMPLES": "64",
        "FL_OPTIONS": json.dumps(options),
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
