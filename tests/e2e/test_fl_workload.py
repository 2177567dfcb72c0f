"""Server and clients as processes on loopback: whole runs, both connection modes, and what goes wrong.

Processes are forked from one warmed parent, as the local runtime does it (`tests.e2e.fl_processes`);
so these tests also show that a child of `fl.preload` trains. The parent is a process of its
own because no gRPC object may exist before a fork, and the tests use gRPC.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from fl import rpc, wire
from fl.wire import Kind
from tests.e2e.fl_processes import REPO_DIR, Start, start_client, start_server


class Forwarder:
    """A TCP relay on loopback that notes when each connection was accepted."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.accepted_ns: list[int] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.accepted_ns.append(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
                far = socket.create_connection(self._target)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 18):
                sink.sendall(chunk)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # close alone would not wake accept
        self._listener.close()


@pytest.fixture(scope="module")
def final_models() -> dict[str, tuple[float, float]]:
    """Accuracy and loss that each mode reached, to be compared between tests of this module."""
    return {}


@pytest.mark.parametrize("mode", ["persistent", "reconnect"])
def test_a_whole_run(start: Start, mode: str, final_models: dict[str, tuple[float, float]]) -> None:
    clients, rounds = 3, 3
    common = {"FL_CLIENTS": str(clients), "FL_ROUNDS": str(rounds)}
    server, address = start_server(start, **common)
    relay = Forwarder(address)
    try:
        reconnect = str(int(mode == "reconnect"))
        processes = [
            start_client(start, i, relay.address, FL_RECONNECT=reconnect, **common) for i in range(clients)
        ]
        assert [process.wait() for process in (server, *processes)] == [0] * (clients + 1)
    finally:
        relay.close()
    events = server.events
    assert events[-1]["event"] == "run_end"
    assert events[-1]["reason"] == "completed"
    assert sum(event["event"] == "client_ready" for event in events) == clients

    edges = []
    for number in range(1, rounds + 1):
        names = [
            e["event"]
            for e in events
            if e["round"] == number and e["event"] not in ("run_end", "target_reached")
        ]
        assert names == [
            "round_start",
            "send_start",
            *["update_received"] * clients,
            "wait_end",
            "aggregate_end",
            "evaluate_end",
            "round_end",
        ]
        instant = {e["event"]: e["time_monotonic_ns"] for e in events if e["round"] == number}
        edges.append((instant["round_start"], instant["round_end"]))
        for process in processes:
            mine = {e["event"]: e["time_monotonic_ns"] for e in process.events if e["round"] == number}
            assert set(mine) == {"model_received", "train_start", "train_end", "update_sent"}
            assert instant["send_start"] < mine["train_start"] < mine["train_end"] < mine["update_sent"]
            assert mine["train_end"] < instant["wait_end"]
    # Rounds follow each other without a gap that nothing accounts for.
    assert all(later[0] == earlier[1] for earlier, later in itertools.pairwise(edges))

    per_round = [sum(begin < t < end for t in relay.accepted_ns) for begin, end in edges]
    if mode == "persistent":
        assert (len(relay.accepted_ns), per_round) == (clients, [0] * rounds)
    else:
        assert (len(relay.accepted_ns), per_round) == (clients * (1 + rounds), [clients] * rounds)

    evaluated = [e for e in events if e["event"] == "evaluate_end"]
    assert evaluated[-1]["accuracy"] > evaluated[0]["accuracy"]
    # The connections make no difference to the arithmetic: same seed, same model, to the last bit.
    final_models[mode] = (evaluated[-1]["accuracy"], evaluated[-1]["loss"])
    assert len(set(final_models.values())) == 1


def test_clients_go_where_a_file_says_by_then(start: Start, tmp_path: Path) -> None:
    """The file changes while a round goes on: each client connects anew once, and no update is lost."""
    clients, rounds = 2, 6
    common = {"FL_CLIENTS": str(clients), "FL_ROUNDS": str(rounds), "FL_MODEL": "narrow"}
    server, address = start_server(start, **common)
    relay, file = Forwarder(address), tmp_path / "address"
    file.write_text(f"{address}\n")
    try:
        processes = [
            start_client(start, i, "nowhere.invalid:1", FL_SERVER_FILE=str(file), **common)
            for i in range(clients)
        ]
        server.until("round_end", 2)
        (tmp_path / "new").write_text(relay.address)
        (tmp_path / "new").rename(file)
        assert [process.wait() for process in (server, *processes)] == [0] * (clients + 1)
    finally:
        relay.close()
    assert len(relay.accepted_ns) == clients
    for number in range(1, rounds + 1):
        received = [e for e in server.events if e["event"] == "update_received" and e["round"] == number]
        assert len(received) == clients


def test_clients_may_come_first_and_one_that_dies_is_reported_missing(start: Start) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = {"FL_CLIENTS": "4", "FL_ROUNDS": "1"}
    processes = [start_client(start, i, address, **common) for i in range(4)]
    time.sleep(0.5)  # long enough for refused attempts and their back-off
    assert not any(process.events for process in processes)
    server = start("fl.server", "server", FL_LISTEN=address, FL_ROUND_DEADLINE_S="8", **common)
    processes[3].until("train_start", 1)
    os.kill(processes[3].pid, signal.SIGKILL)
    assert [process.wait() for process in (server, *processes)] == [0, 0, 0, 0, -9]
    missing = [(e["round"], e["client_id"]) for e in server.events if e["event"] == "client_missing"]
    assert missing == [(1, "fl-client-3")]
    assert server.until("round_end")["updates"] == 3
    start_ns, end_ns = (server.until(event, 1)["time_monotonic_ns"] for event in ("round_start", "wait_end"))
    assert 8e9 <= end_ns - start_ns < 9e9


def test_too_few_clients_end_the_run(start: Start) -> None:
    server, address = start_server(start, FL_CLIENTS="3", FL_ROUND_DEADLINE_S="1.5")
    client = start_client(start, 0, address, FL_CLIENTS="3")
    assert server.wait() == 1
    assert server.stderr == ("fl-server: 1 of 3 clients came within 1.5 s (fl-client-0), 3 are needed\n")
    assert server.events[-1]["reason"].startswith("1 of 3 clients")
    assert client.wait() == 1
    # The client says it too, in one line.
    assert client.stderr == (
        f"fl-client-0: the stream to {address} broke: ABORTED (1 of 3 clients came within 1.5 s"
        " (fl-client-0), 3 are needed)\n"
    )


def test_a_server_that_dies_ends_its_clients(start: Start) -> None:
    server, address = start_server(start, FL_CLIENTS="1")
    client = start_client(start, 0, address, FL_CLIENTS="1")
    client.until("train_start", 1)
    os.kill(server.pid, signal.SIGKILL)
    assert server.wait() == -9
    assert client.wait() == 1
    assert client.stderr.startswith(f"fl-client-0: the stream to {address} broke: UNAVAILABLE (")
    assert client.stderr.count("\n") == 1


def test_sigterm(start: Start) -> None:
    server, address = start_server(start, FL_CLIENTS="2")
    client = start_client(start, 0, address, FL_CLIENTS="2")
    server.until("client_ready")
    for process in (client, server):
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait() == 143
    assert server.events[-1]["event"] == "run_end"
    assert server.events[-1]["reason"] == "terminated"
    assert client.stderr == server.stderr == ""


def test_a_taken_port(start: Start) -> None:
    server, address = start_server(start)
    second = start("fl.server", "second", FL_LISTEN=address)
    assert second.wait() == 1
    assert f"fl-server: cannot listen on {address}" in second.stderr
    assert "Traceback" not in second.stderr
    assert server.until("run_start")


@pytest.mark.parametrize(
    ("module", "env", "line"),
    [
        (
            "fl.client",
            {"FL_SERVER": "127.0.0.1:1", "JOB_COMPLETION_INDEX": "0"},
            "fl-client: POD_NAME is not set",
        ),
        (
            "fl.server",
            {"FL_ROUNDS": "0"},
            "fl-server: FL_ROUNDS=0: expected a whole number from 1",
        ),
        (
            "fl.server",
            {"FL_DATASET": "mnist"},
            "fl-server: data set mnist is read from files",
        ),
    ],
)
def test_a_wrong_environment_is_one_line(start: Start, module: str, env: dict[str, str], line: str) -> None:
    process = start(module, "wrong", FL_LISTEN="127.0.0.1:0", **env)
    assert process.wait() == 2
    assert process.stderr.startswith(line)
    assert process.stderr.count("\n") == 1
    assert process.events == []


def test_strangers_are_refused_and_the_run_goes_on(start: Start) -> None:
    server, address = start_server(start, FL_CLIENTS="1", FL_ROUNDS="1")
    small = np.zeros(3, dtype=np.float32)
    strangers = {
        b"GET / HTTP/1.1\r\n" + bytes(100): "another protocol",
        wire.encode(Kind.UPDATE, 1, client_id="x", num_examples=1, body=small): "body of 12 bytes",
        wire.encode(Kind.DONE, 1, client_id="x"): "sent DONE",
    }
    for message, says in strangers.items():
        with grpc.insecure_channel(address, options=rpc.CLIENT_OPTIONS) as channel:
            call = channel.stream_stream(rpc.METHOD_PATH)(iter([message]), timeout=20)
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert says in caught.value.details()
    client = start_client(start, 0, address, FL_CLIENTS="1")
    assert (client.wait(), server.wait()) == (0, 0)
    assert "Traceback" not in server.stderr


def test_the_model_on_the_wire_is_the_published_one(start: Start) -> None:
    _, address = start_server(start, FL_CLIENTS="1")
    hello = wire.encode(Kind.HELLO, 0, client_id="fl-client-0")
    done = threading.Event()

    def requests() -> Iterator[bytes]:
        yield hello
        done.wait(20)

    with grpc.insecure_channel(address, options=rpc.CLIENT_OPTIONS) as channel:
        raw = next(channel.stream_stream(rpc.METHOD_PATH)(requests(), timeout=20))
        done.set()
    message = wire.decode(raw, 1_199_882)
    assert (message.kind, message.round) == (Kind.MODEL, 1)
    assert len(raw) == 88 + 4 * 1_199_882


def test_modules_run_as_containers_start_them() -> None:
    environment = {"PATH": os.environ.get("PATH", ""), "FL_CLIENTS": "0"}
    running = [
        subprocess.Popen(
            (sys.executable, "-m", module), cwd=REPO_DIR, env=environment, stderr=subprocess.PIPE, text=True
        )
        for module in ("fl.server", "fl.client")
    ]
    for process in running:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "FL_CLIENTS=0: expected a whole number" in stderr
        assert stderr.count("\n") == 1
