"""A deployment of nobody's framework without a hub: clients fetch a model from a server, train, give it back.

    python -m tests.generic_direct SETTINGS.json server
    python -m tests.generic_direct SETTINGS.json NAME

What carries it is chosen: gRPC (a call for each message, one stream for the whole run, or several streams at
once on one connection) or HTTP/1.1 (one connection that is kept, or several), with TLS in the application or
without, compressed or not. Whoever does something writes down when, by its own clock: that is the truth which
a tracer, who knows nothing of all this, is held against. Work is CPU time that is really spent.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests import generic_deployment
from tests.generic_deployment import work
from tests.generic_transports import GrpcLink, GrpcServer, GrpcStreamLink, HttpLink, HttpServer, Link

_RANDOM_SHARE = 4  # of what is compressed, one byte in so many is random


def waited_ns() -> int:
    """How long this process's threads have waited for a CPU so far, by the scheduler's own account."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            total += int((task / "schedstat").read_text().split()[1])
    return total


class Log(generic_deployment.Log):
    """Says besides how long its process has waited for a CPU so far: so much later a line may be written."""

    def __call__(self, event: str, **more: Any) -> None:
        super().__call__(event, waited_ns=waited_ns(), **more)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one run; times in seconds."""

    directory: str  # for logs
    host: str
    port: int
    transport: str  # grpc | http
    shape: str = "unary"  # grpc: unary, stream (one, for all of it), streams (several at once); http: unary
    parts: int = 1  # of a message, at once: calls on one connection (grpc), connections (http)
    clients: int = 2
    rounds: int = 3
    message_bytes: int = 2_000_000
    poll_s: float = 0.0  # between two questions for a model that is not there; 0: the server holds them
    train_s: float = 0.4  # CPU time of the first client, half as much again of each one more
    prepare_s: float = 0.05  # of the server, before there is a model
    give_s: float = 0.05  # of the server, once it is asked for a model and before it gives it
    aggregate_s: float = 0.1
    pause_s: float = 0.5  # between rounds
    beat_s: float = 0.0  # a heartbeat of each client's, as often; 0: none
    tls: bool = False
    compressed: bool = False

    @property
    def names(self) -> list[str]:
        """Of the clients."""
        return [f"client-{i}" for i in range(1, self.clients + 1)]

    @property
    def certificate(self) -> tuple[Path, Path]:
        """The server's, and its key."""
        return Path(self.directory) / "server.crt", Path(self.directory) / "server.key"

    @property
    def authority(self) -> Path:
        """Who has signed it."""
        return Path(self.directory) / "ca.crt"

    def content(self) -> bytes:
        """Of a message: that of which some can be compressed, or none."""
        if not self.compressed:
            return random.Random(1).randbytes(self.message_bytes)
        noise = random.Random(1).randbytes(self.message_bytes // _RANDOM_SHARE)
        return noise + bytes(self.message_bytes - len(noise))

    def save(self) -> Path:
        """Into its directory. :returns: the file."""
        path = Path(self.directory) / "settings.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Back."""
        return cls(**json.loads(path.read_text()))


class Rounds:
    """The server's, whatever brings what clients ask for and give."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log, self.served = Log(settings, "server"), Log(settings, "served")
        self._changed = threading.Condition()
        self._number = 0
        self._over = False
        self._given: set[tuple[int, int]] = set()
        self._giving = [threading.Lock() for _ in settings.names]
        self._came: dict[tuple[int, int], set[int]] = defaultdict(set)
        content = settings.content()
        size = -(-len(content) // settings.parts)
        self._pieces = [content[i * size : (i + 1) * size] for i in range(settings.parts)]

    def is_there(self, number: int) -> bool:
        """Whether a round's model can be had, or never can."""
        return self._over or self._number >= number

    def model(self, number: int, client: int, part: int) -> bytes:
        """A part of a round's model, once it is there; empty: there are no more rounds."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_there(number))
        if self._number < number:
            return b""
        with self._giving[client]:
            if (number, client) not in self._given:  # who is asked for a model has to do something for it
                name = self.settings.names[client]
                self.served("taken", round=number, client_id=name)
                work(self.settings.give_s)
                self.served("given", round=number, client_id=name)
                self._given.add((number, client))
        return self._pieces[part]

    def take(self, number: int, client: int, part: int) -> None:
        """A part of a client's update has come."""
        with self._changed:
            self._came[number, client].add(part)
            if len(self._came[number, client]) == self.settings.parts:
                self.log("update_received", round=number, client_id=self.settings.names[client])
                self._changed.notify_all()

    def run(self) -> None:
        """All rounds; begins when the file ``go`` is there."""
        settings, log = self.settings, self.log
        while not (Path(settings.directory) / "go").exists():
            time.sleep(0.02)
        for number in range(1, settings.rounds + 1):
            time.sleep(settings.pause_s)
            log("round_start", round=number)
            work(settings.prepare_s)
            log("send_start", round=number)
            with self._changed:
                self._number = number
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda number=number: all(  # type: ignore[misc]
                        len(self._came[number, client]) == settings.parts
                        for client in range(settings.clients)
                    )
                )
            log("wait_end", round=number)
            work(settings.aggregate_s)
            log("aggregate_end", round=number)
            log("round_end", round=number)
        with self._changed:
            self._over = True
            self._changed.notify_all()


def _server(settings: Settings) -> None:
    rounds = Rounds(settings)
    (GrpcServer if settings.transport == "grpc" else HttpServer)(settings, rounds).start()
    rounds.run()
    time.sleep(1.0)  # the last answers leave; clients end by themselves


def _client(settings: Settings, name: str) -> None:
    log, client = Log(settings, name), settings.names.index(name)
    kinds = {"grpc": GrpcStreamLink if settings.shape == "stream" else GrpcLink, "http": HttpLink}
    link: Link = kinds[settings.transport](settings, client)
    log("connected")
    if settings.beat_s:
        threading.Thread(target=_beats, args=(link, settings.beat_s), daemon=True).start()
    number = 1
    while model := link.fetch(number):
        log("train_start", round=number, client_id=name)
        work(settings.train_s * (1 + client / 2))
        log("train_end", round=number, client_id=name)
        link.give(number, model)
        number += 1


def _beats(link: Link, every_s: float) -> None:
    while True:
        time.sleep(every_s)
        link.beat()


def main() -> None:
    """Play a role."""
    file, role = sys.argv[1:]
    settings = Settings.load(Path(file))
    if role == "server":
        _server(settings)
    else:
        _client(settings, role)


if __name__ == "__main__":
    main()
