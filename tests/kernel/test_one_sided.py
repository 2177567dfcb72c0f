"""Only the server's side is watched: what its TCP tells of sending, and one row for what lies beyond."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.flows.ledger import build_flow_ledger
from tests.kernel.pods import TestPod
from tests.kernel.watching import Watched
from ztprobe.events.owners import OWNERS
from ztprobe.kernelnet.netns import entered, inode
from ztprobe.rundir.clock import take_sample
from ztprobe.rundir.store import Run

ROUNDS, MESSAGE_BYTES, RATE_MBIT, TRAINING_S = 3, 1_000_000, 40, 0.3
SENDING_S = MESSAGE_BYTES * 8 / RATE_MBIT / 1e6


def take(connection: socket.socket) -> None:
    """A whole message."""
    left = MESSAGE_BYTES
    while left:
        got = len(connection.recv(left))
        assert got
        left -= got


def work(cpu_s: float) -> None:
    """Spend so much CPU time."""
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        sum(range(2000))


def rounds_of(server: TestPod, client: TestPod) -> tuple[list[dict[str, Any]], list[float]]:
    """The server's events, and how long the client took from its receipt of the model to its answer."""
    with entered(server.netns):
        listener = socket.create_server((server.address, 0))
    took_s: list[float] = []

    def train() -> None:
        with entered(client.netns):
            caller = socket.socket()
        with caller:
            caller.connect(listener.getsockname())
            for _ in range(ROUNDS):
                take(caller)
                begun = time.monotonic()
                work(TRAINING_S)
                took_s.append(time.monotonic() - begun)
                caller.sendall(bytes(MESSAGE_BYTES))

    thread = threading.Thread(target=train)
    thread.start()
    events: list[dict[str, Any]] = []

    def note(event: str, number: int) -> None:
        events.append(
            {
                "event": event,
                "round": number,
                "time_unix_ns": time.time_ns(),
                "time_monotonic_ns": time.monotonic_ns(),
            }
        )

    with listener:
        connection, _ = listener.accept()
        with connection:
            for number in range(1, ROUNDS + 1):
                note("round_start", number)
                connection.sendall(bytes(MESSAGE_BYTES))
                take(connection)
                note("round_end", number)
        thread.join()
    return events, took_s


def run_of(server: TestPod, client: TestPod, tables: dict[str, pd.DataFrame], **more: Any) -> Run:
    """A run that was attached to the server alone."""
    participants = [
        {
            "name": "server",
            "role": "server",
            "target": "",
            "netns_inode": inode(server.netns),
            "pod": server.name,
            "processes": [{"pid": os.getpid(), "started": 0, "command": "test"}],
        },
        {
            "name": "far-client",
            "role": "client",
            "target": "",
            "netns_inode": 0,
            "pod": "",
            "address": client.address,
            "processes": [],
        },
    ]
    owners = pd.DataFrame(
        {
            one.name: pd.Series([], dtype="int64" if one.kind == "integer" else object)
            for one in OWNERS.columns
        }
    )
    meta = {
        "attachment": {"participants": participants},
        "pods": [
            {
                "name": server.name,
                "address": server.address,
                "labels": {},
                "netns_inode": inode(server.netns),
            }
        ],
        "loss": {},
    }
    return Run(path=Path("/"), meta=meta | more, rounds=[], events=tables | {"owners": owners})


def test_sending_is_split_by_the_servers_tcp_and_the_rest_is_one_row(pods: tuple[TestPod, TestPod]) -> None:
    server, client = pods
    with entered(server.netns):
        rate = ("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", f"{RATE_MBIT}mbit")
        subprocess.run([*rate, "burst", "16kb", "latency", "500ms"], check=True)
    samples = [dataclasses.asdict(take_sample())]
    watched = Watched((server,), attached=True)  # type: ignore[arg-type]
    try:
        events, took_s = rounds_of(server, client)
        tables = watched.stop()
    finally:
        watched.close()
    samples.append(dataclasses.asdict(take_sample()))
    run = dataclasses.replace(run_of(server, client, tables, clock_samples=samples), rounds=events)
    ledger = build_flow_ledger(run)
    assert ledger.flow is not None and ledger.flow.one_sided
    assert 0 < ledger.flow.round_trips_ns["far-client"] < 100_000_000
    for one, trained_s in zip(ledger.rounds, took_s, strict=True):
        parts = {name: value / 1e9 for name, value in one.components_ns.items()}
        assert one.critical_client == "far-client"
        assert parts["client_and_return_path"] == pytest.approx(trained_s, rel=0.05, abs=0.05)
        assert parts["transmission"] + parts["retransmission"] >= SENDING_S * 0.9
        assert parts["propagation"] <= ledger.flow.round_trips_ns["far-client"] / 1e9
        assert parts["compute"] == 0  # nobody saw it
        assert one.residual_ns <= 0.05 * one.duration_ns
