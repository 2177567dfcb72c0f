"""What the containers' environment says, read once and checked.

The same variables on both runtimes; a wrong one ends the process with its name,
its value and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from fl import rpc
from fl.data import DATASETS
from fl.errors import ConfigError
from fl.options import FlOptions, read_options
from fl.partition import DISTRIBUTIONS
from fl.shapes import MODELS, size_of
from fl.wire import CLIENT_ID_BYTES

__all__ = ("ClientConfig", "EdgeConfig", "ServerConfig", "WorkloadConfig")

# The published rule: a round counts with three clients (or all of them where there are fewer).
_MIN_CLIENTS = 3


class _Common(TypedDict):
    clients: int
    seed: int
    dataset: str
    data_dir: Path | None
    model: str
    http2_window_bytes: int
    grpc_options: rpc.Options
    options: FlOptions


@dataclass(frozen=True, kw_only=True)
class WorkloadConfig:
    """What server and clients have to agree on.

    FL_HTTP2_WINDOW_BYTES is how much each end takes in before it has looked at it (0: as gRPC sees fit).
    FL_GRPC_OPTIONS is a JSON object of channel arguments over the usual ones, for one end or both.
    FL_OPTIONS holds algorithm, protection, compression and edges (`fl.options`).
    """

    clients: int
    seed: int
    dataset: str
    data_dir: Path | None
    model: str = "cnn"
    http2_window_bytes: int = 0
    grpc_options: rpc.Options = ()
    options: FlOptions = field(default_factory=FlOptions)

    @property
    def edges(self) -> int:
        """How many edge aggregators stand between clients and server (`fl.edge`)."""
        return self.options.edges or 0

    def edge_of(self, client_index: int) -> int:
        """Which edge a client belongs to: as many neighbours as possible to each."""
        return client_index * self.edges // self.clients


@dataclass(frozen=True, kw_only=True)
class ServerConfig(WorkloadConfig):
    """FL_LISTEN, FL_ROUNDS, FL_EVAL_EVERY, FL_ROUND_DEADLINE_S, FL_CHECKPOINT_DIR and the common ones.

    FL_LISTEN may hold several addresses, with commas between.

    The last, if it is given, is where each round's model is kept until the next one's is written.
    """

    listen: str
    rounds: int
    eval_every: int
    round_deadline_s: float
    checkpoint_dir: Path | None = None

    @property
    def participants(self) -> int:
        """Who sends the server updates: the edges where there are any, else the clients."""
        return self.edges or self.clients

    @property
    def min_clients(self) -> int:
        """How many updates a round needs."""
        return min(_MIN_CLIENTS, self.participants)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> ServerConfig:
        """:raises ConfigError: a variable is missing or wrong."""
        return cls(
            **_common(env),
            listen=_text(env, "FL_LISTEN", "0.0.0.0:50051"),
            rounds=_integer(env, "FL_ROUNDS", 10, minimum=1),
            eval_every=_integer(env, "FL_EVAL_EVERY", 5, minimum=1),
            round_deadline_s=_seconds(env, "FL_ROUND_DEADLINE_S", 300.0),
            checkpoint_dir=Path(directory) if (directory := env.get("FL_CHECKPOINT_DIR", "")) else None,
        )


@dataclass(frozen=True, kw_only=True)
class EdgeConfig(WorkloadConfig):
    """POD_NAME, JOB_COMPLETION_INDEX, FL_SERVER, FL_LISTEN, FL_ROUND_DEADLINE_S and the common ones."""

    edge_id: str
    edge_index: int
    server: str
    listen: str
    round_deadline_s: float

    @property
    def own_clients(self) -> int:
        """How many clients belong to this edge."""
        return sum(self.edge_of(index) == self.edge_index for index in range(self.clients))

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> EdgeConfig:
        """:raises ConfigError: a variable is missing or wrong."""
        common = _common(env)
        return cls(
            **common,
            edge_id=_pod_name(env),
            edge_index=_index(env, "the number of edges", common["options"].edges or 0),
            server=_text(env, "FL_SERVER", None),
            listen=_text(env, "FL_LISTEN", "0.0.0.0:50051"),
            round_deadline_s=_seconds(env, "FL_ROUND_DEADLINE_S", 300.0),
        )


@dataclass(frozen=True, kw_only=True)
class ClientConfig(WorkloadConfig):
    """POD_NAME, JOB_COMPLETION_INDEX, FL_SERVER, FL_DISTRIBUTION, FL_RECONNECT and the common ones.

    FL_MAX_SAMPLES shortens training to so many of the client's samples (0: all of them). FL_SERVER_FILE is a
    file with another address in FL_SERVER's place, looked at for each connection: it may change meanwhile.
    """

    client_id: str
    client_index: int
    server: str
    distribution: str
    reconnect: bool
    max_samples: int = 0
    server_file: Path | None = None

    @property
    def peer(self) -> str:
        """Whom to talk to by now: `{edge}` in FL_SERVER stands for the number of the client's edge.

        :raises ConfigError: FL_SERVER_FILE cannot be read, or is empty.
        """
        server = self.server
        if self.server_file is not None:
            try:
                server = self.server_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"FL_SERVER_FILE={self.server_file} cannot be read: {error}") from error
            if not server:
                raise ConfigError(f"FL_SERVER_FILE={self.server_file} is empty: expected HOST:PORT")
        return server.replace("{edge}", str(self.edge_of(self.client_index)))

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> ClientConfig:
        """:raises ConfigError: a variable is missing or wrong."""
        common = _common(env)
        return cls(
            **common,
            client_id=_pod_name(env),
            client_index=_index(env, "FL_CLIENTS", common["clients"]),
            server=_text(env, "FL_SERVER", None),
            distribution=_choice(env, "FL_DISTRIBUTION", DISTRIBUTIONS),
            reconnect=_choice(env, "FL_RECONNECT", ("0", "1")) == "1",
            max_samples=_integer(env, "FL_MAX_SAMPLES", 0, minimum=0),
            server_file=Path(file) if (file := env.get("FL_SERVER_FILE", "")) else None,
        )


def _index(env: Mapping[str, str], limit_key: str, limit: int) -> int:
    index = _integer(env, "JOB_COMPLETION_INDEX", None, minimum=0)
    if index >= limit:
        raise ConfigError(f"JOB_COMPLETION_INDEX={index}: expected below {limit_key}={limit}")
    return index


def _pod_name(env: Mapping[str, str]) -> str:
    name = _text(env, "POD_NAME", None)
    if len(name.encode()) >= CLIENT_ID_BYTES:
        raise ConfigError(f"POD_NAME={name}: longer than {CLIENT_ID_BYTES - 1} bytes")
    return name


def _common(env: Mapping[str, str]) -> _Common:
    directory = env.get("FL_DATA_DIR", "")
    clients = _integer(env, "FL_CLIENTS", 5, minimum=1)
    model = _choice(env, "FL_MODEL", tuple(MODELS))
    options = read_options(env)
    options.check(clients=clients, parameters=size_of(model))
    return {
        "clients": clients,
        "seed": _integer(env, "FL_SEED", 0, minimum=0, maximum=2**32 - 1),
        "dataset": _choice(env, "FL_DATASET", DATASETS),
        "data_dir": Path(directory) if directory else None,
        "model": model,
        "http2_window_bytes": _integer(env, "FL_HTTP2_WINDOW_BYTES", 0, minimum=0),
        "grpc_options": _channel_arguments(env),
        "options": options,
    }


def _channel_arguments(env: Mapping[str, str]) -> rpc.Options:
    text = _text(env, "FL_GRPC_OPTIONS", "{}")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or any(type(value) is not int for value in found.values()):
        raise ConfigError(f"FL_GRPC_OPTIONS={text}: expected a JSON object of channel arguments, all numbers")
    return tuple(found.items())


def _text(env: Mapping[str, str], key: str, default: str | None) -> str:
    value = env.get(key, "") or default
    if not value:
        raise ConfigError(f"{key} is not set")
    return value


def _integer(
    env: Mapping[str, str], key: str, default: int | None, *, minimum: int, maximum: int = 10**6
) -> int:
    text = _text(env, key, None if default is None else str(default))
    if not text.isascii() or not text.isdigit() or not minimum <= int(text) <= maximum:
        raise ConfigError(f"{key}={text}: expected a whole number from {minimum} to {maximum}")
    return int(text)


def _seconds(env: Mapping[str, str], key: str, default: float) -> float:
    text = _text(env, key, str(default))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{key}={text}: expected seconds above 0")
    return value


def _choice(env: Mapping[str, str], key: str, choices: tuple[str, ...]) -> str:
    text = _text(env, key, choices[0])
    if text not in choices:
        raise ConfigError(f"{key}={text}: expected one of {', '.join(choices)}")
    return text
