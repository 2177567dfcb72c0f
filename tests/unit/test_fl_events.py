"""Event lines and the environment that configures the workload."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path

import pytest

from fl import rpc
from fl.config import ClientConfig, ServerConfig
from fl.errors import ConfigError
from fl.events import EventLog, now


class Counting(io.StringIO):
    flushes = 0

    def flush(self) -> None:
        self.flushes += 1


def test_lines_carry_both_clocks_and_are_flushed() -> None:
    stream = Counting()
    log = EventLog(stream, client_id="fl-client-2")
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    log.emit("train_start", 3)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    line = json.loads(stream.getvalue())
    assert list(line)[:4] == ["event", "round", "time_unix_ns", "time_monotonic_ns"]
    assert (line["event"], line["round"], line["client_id"]) == ("train_start", 3, "fl-client-2")
    assert before <= line["time_monotonic_ns"] <= after
    assert abs(line["time_unix_ns"] - time.time_ns()) < 5e9
    assert stream.flushes == 1


def test_an_earlier_instant_can_be_given() -> None:
    stream = Counting()
    stamp = now()
    returned = EventLog(stream).emit("model_received", 1, at=stamp)
    assert returned == stamp
    assert json.loads(stream.getvalue())["time_monotonic_ns"] == stamp.monotonic_ns


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_is_null(loss: float) -> None:
    stream = Counting()
    EventLog(stream).emit("evaluate_end", 1, accuracy=0.1, loss=loss)
    assert json.loads(stream.getvalue(), parse_constant=pytest.fail)["loss"] is None


def test_threads_do_not_mix_their_lines() -> None:
    stream = Counting()
    log = EventLog(stream)
    threads = [
        threading.Thread(target=lambda i=i: [log.emit("e", i, text="x" * 200) for _ in range(50)])
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rounds = [json.loads(line)["round"] for line in stream.getvalue().splitlines()]
    assert sorted(rounds) == [i for i in range(8) for _ in range(50)]


CLIENT = {"POD_NAME": "fl-client-1", "JOB_COMPLETION_INDEX": "1", "FL_SERVER": "fl-server:50051"}


def test_environment_of_both_roles() -> None:
    client = ClientConfig.from_env(
        CLIENT | {"FL_RECONNECT": "1", "FL_DISTRIBUTION": "noniid", "FL_SEED": "4", "FL_DATA_DIR": "/data"}
    )
    assert (client.client_id, client.client_index, client.reconnect) == ("fl-client-1", 1, True)
    assert (client.distribution, client.seed, client.data_dir) == ("noniid", 4, Path("/data"))
    assert (client.model, client.max_samples) == ("cnn", 0)
    short = ClientConfig.from_env(CLIENT | {"FL_MODEL": "narrow", "FL_MAX_SAMPLES": "160"})
    assert (short.model, short.max_samples) == ("narrow", 160)
    assert client.http2_window_bytes == 0
    granted = ServerConfig.from_env({"FL_HTTP2_WINDOW_BYTES": "8192"})
    assert dict(rpc.window_options(granted.http2_window_bytes))["grpc.http2.lookahead_bytes"] == 8192
    assert rpc.window_options(0) == ()
    limited = ClientConfig.from_env(CLIENT | {"FL_GRPC_OPTIONS": '{"grpc.keepalive_time_ms": 500}'})
    assert limited.grpc_options == (("grpc.keepalive_time_ms", 500),)
    keeping = ServerConfig.from_env({"FL_CHECKPOINT_DIR": "/run"})
    assert (keeping.checkpoint_dir, granted.checkpoint_dir) == (Path("/run"), None)
    server = ServerConfig.from_env({"FL_LISTEN": "127.0.0.1:15051", "FL_ROUNDS": "50"})
    assert (server.listen, server.rounds, server.eval_every) == ("127.0.0.1:15051", 50, 5)
    assert (server.round_deadline_s, server.min_clients) == (300.0, 3)
    assert ServerConfig.from_env({"FL_CLIENTS": "2"}).min_clients == 2


def test_a_client_looks_up_whom_to_connect_to_each_time(tmp_path: Path) -> None:
    file = tmp_path / "address"
    client = ClientConfig.from_env(CLIENT | {"FL_SERVER_FILE": str(file)})
    with pytest.raises(ConfigError, match="cannot be read"):
        client.peer  # noqa: B018 - looking is what fails
    file.write_text("one:1\n")
    assert client.peer == "one:1"
    file.write_text("127.0.0.1:15001")
    assert client.peer == "127.0.0.1:15001"
    file.write_text("\n")
    with pytest.raises(ConfigError, match="is empty: expected HOST:PORT"):
        client.peer  # noqa: B018
    assert ClientConfig.from_env(CLIENT).peer == "fl-server:50051"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"FL_CLIENTS": "0"}, "FL_CLIENTS=0: expected a whole number from 1"),
        ({"FL_CLIENTS": "five"}, "FL_CLIENTS=five"),
        ({"FL_SEED": "-1"}, "FL_SEED=-1"),
        ({"FL_DATASET": "cifar"}, "expected one of digits, mnist, fashion-mnist"),
        ({"FL_DISTRIBUTION": "zipf"}, "expected one of iid, noniid"),
        ({"FL_MODEL": "wide"}, "FL_MODEL=wide: expected one of cnn, narrow"),
        ({"FL_MAX_SAMPLES": "-1"}, "FL_MAX_SAMPLES=-1"),
        ({"FL_HTTP2_WINDOW_BYTES": "8k"}, "FL_HTTP2_WINDOW_BYTES=8k: expected a whole number from 0"),
        ({"FL_GRPC_OPTIONS": "keepalive"}, "FL_GRPC_OPTIONS=keepalive: expected a JSON object"),
        ({"FL_GRPC_OPTIONS": '{"grpc.keepalive_time_ms": "1s"}'}, "channel arguments, all numbers"),
        ({"FL_RECONNECT": "yes"}, "FL_RECONNECT=yes: expected one of 0, 1"),
        ({"JOB_COMPLETION_INDEX": "5"}, "expected below FL_CLIENTS=5"),
        ({"JOB_COMPLETION_INDEX": ""}, "JOB_COMPLETION_INDEX is not set"),
        ({"POD_NAME": ""}, "POD_NAME is not set"),
        ({"POD_NAME": "p" * 64}, "longer than 63 bytes"),
        ({"FL_SERVER": ""}, "FL_SERVER is not set"),
    ],
)
def test_wrong_client_environment(wrong: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ClientConfig.from_env(CLIENT | wrong)


@pytest.mark.parametrize("value", ["0", "-3", "soon", "inf", "nan"])
def test_wrong_deadline(value: str) -> None:
    with pytest.raises(ConfigError, match="expected seconds above 0"):
        ServerConfig.from_env({"FL_ROUND_DEADLINE_S": value})
