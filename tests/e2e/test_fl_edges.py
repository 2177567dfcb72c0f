"""Clients, edge aggregators and a server as processes on loopback."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.e2e.fl_processes import Process, Start, start_client, start_server
from tests.e2e.test_fl_options import of

CLIENTS, EDGES = 5, 2


def start_edges(start: Start, server: str, **common: str) -> list[Process]:
    edges = []
    for index in range(EDGES):
        env = {"POD_NAME": f"fl-edge-{index}", "JOB_COMPLETION_INDEX": str(index), "FL_SERVER": server}
        listen = {"FL_LISTEN": "127.0.0.1:0"}
        edges.append(start("fl.edge", f"edge-{index}", **listen | env | common))
    return edges


def hierarchy(
    start: Start, compression: str = "none", **common: str
) -> tuple[Process, list[Process], list[Process]]:
    common["FL_OPTIONS"] = json.dumps({"edges": EDGES, "compression": compression})
    common = {"FL_CLIENTS": str(CLIENTS), "FL_ROUNDS": "2", "FL_MAX_SAMPLES": "64"} | common
    server, address = start_server(start, **common)
    edges = start_edges(start, address, **common)
    clients = []
    for index in range(CLIENTS):
        port = edges[index * EDGES // CLIENTS].until("run_start")["port"]
        clients.append(start_client(start, index, f"127.0.0.1:{port}", **common))
    return server, edges, clients


@pytest.mark.parametrize("compression", ["none", "int8"])
def test_edges_make_no_difference_to_the_model(start: Start, compression: str) -> None:
    options = json.dumps({"compression": compression})
    common = {"FL_CLIENTS": str(CLIENTS), "FL_ROUNDS": "2", "FL_MAX_SAMPLES": "64", "FL_OPTIONS": options}
    flat, address = start_server(start, **common)
    processes = [start_client(start, i, address, **common) for i in range(CLIENTS)]
    assert [p.wait() for p in (flat, *processes)] == [0] * (CLIENTS + 1)
    expected = [e["loss"] for e in of(flat, "evaluate_end")]
    for process in (flat, *processes):
        process.out.unlink()

    server, edges, clients = hierarchy(start, compression)
    assert [p.wait() for p in (server, *edges, *clients)] == [0] * (1 + EDGES + CLIENTS)
    assert [e["loss"] for e in of(server, "evaluate_end")] == pytest.approx(expected, rel=1e-4)
    received = {(e["client_id"], e["num_examples"]) for e in of(server, "update_received")}
    assert received == {("fl-edge-0", 3 * 64), ("fl-edge-1", 2 * 64)}
    assert {e["client_id"] for e in of(edges[1], "update_received")} == {"fl-client-3", "fl-client-4"}
    # The server's traffic is that of two clients, whatever the number behind them.
    assert {e["body_bytes"] for e in of(server, "update_received")} == {4 * 1_199_882}


def test_an_edge_that_dies_is_named_and_ends_its_clients(start: Start) -> None:
    server, edges, clients = hierarchy(start, FL_ROUND_DEADLINE_S="6")
    edges[1].until("model_received", 1)
    os.kill(edges[1].pid, signal.SIGKILL)
    assert server.wait() == 1
    assert "1 of 2 updates came within 6 s (fl-edge-0), 2 are needed" in server.stderr
    assert [p.wait() for p in edges] == [1, -9]
    assert [p.wait() for p in clients] == [1] * CLIENTS
    assert of(server, "client_missing")[0]["client_id"] == "fl-edge-1"


@pytest.mark.long
def test_a_client_that_dies_below_an_edge(start: Start) -> None:
    server, edges, clients = hierarchy(
        start, FL_EDGES=str(EDGES), FL_ROUND_DEADLINE_S="6", FL_MAX_SAMPLES="0"
    )
    clients[0].until("train_start", 1)
    os.kill(clients[0].pid, signal.SIGKILL)
    assert [p.wait() for p in (server, *edges)] == [0] * (1 + EDGES)
    assert [e["client_id"] for e in of(edges[0], "client_missing")] == ["fl-client-0"] * 2
    assert of(server, "client_missing") == []
