"""A deployment of nobody's framework: a server, a hub that stores and forwards, polling nodes, a process per
task.

    python -m tests.generic_deployment SETTINGS.json ROLE [NAME [ROUND]]

ROLE is hub, server, node or task. Messages are objects in parts, one HTTP/1.1 request each, over one or
several connections that stay open. The server puts a round's model into the hub, nodes ask the hub for it
again and again, start a process for it that fetches it from them, and put its answer into the hub, which the
server asks for again and again. Whoever does something writes down when, by its own clock: that is the truth
which a tracer, who knows nothing of all this, is held against. Work is CPU time that is really spent.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NOT_YET, DONE = 204, 200
_LOCAL = "127.0.0.1"
_LISTENS_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one run; times in seconds."""

    directory: str  # for logs
    hub: tuple[str, int]
    node_ports: tuple[int, ...]  # one a client
    rounds: int = 3
    message_bytes: int = 2_000_000
    part_bytes: int = 500_000
    connections: int = 2  # at once, of each client of a hub
    server_poll_s: float = 0.6
    node_poll_s: float = 0.8
    hub_work_s: float = 0.05  # of the hub, once it is asked for a message and before it gives it
    train_s: float = 0.3  # CPU time of a task
    aggregate_s: float = 0.1
    pause_s: float = 0.2  # between rounds
    waits: bool = False  # for a file `go` in its directory, before the first one

    @property
    def clients(self) -> list[str]:
        """Their names."""
        return [f"client-{i}" for i in range(1, len(self.node_ports) + 1)]

    def save(self) -> Path:
        """Into its directory. :returns: the file."""
        path = Path(self.directory) / "settings.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Back."""
        said = json.loads(path.read_text())
        return cls(**said | {name: tuple(said[name]) for name in ("hub", "node_ports")})


class Log:
    """Events by the own clock, one file a process."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._file = (Path(settings.directory) / f"{name}.jsonl").open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def __call__(self, event: str, **more: Any) -> None:
        line = {
            "event": event,
            "time_unix_ns": time.time_ns(),
            "time_monotonic_ns": time.monotonic_ns(),
            **more,
        }
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def work(cpu_s: float) -> None:
    """Spend so much CPU time."""
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        sum(range(2000))


class Hub(ThreadingHTTPServer):
    """Keeps objects until somebody asks for them."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], log: Log, work_s: float) -> None:
        super().__init__(address, _Handler)
        self.log, self.work_s = log, work_s
        self.parts: dict[str, dict[int, bytes]] = defaultdict(dict)
        self.whole: dict[str, int] = {}  # name -> parts
        self.changed = threading.Condition()

    def wait_for(self, name: str) -> int:
        """Until an object is whole. :returns: its parts."""
        with self.changed:
            self.changed.wait_for(lambda: name in self.whole)
            return self.whole[name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        """A part of an object: /NAME/PART/PARTS."""
        name, part, parts = self.path.lstrip("/").rsplit("/", 2)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub = self.server
        with hub.changed:
            hub.parts[name][int(part)] = body
            whole = len(hub.parts[name]) == int(parts)
            if whole:
                hub.log("stored", name=name)
                hub.whole[name] = int(parts)
                hub.changed.notify_all()
        self._answer(DONE)

    def do_GET(self) -> None:
        """/NAMES (with commas): which are there? /NAME//PART: that part of it."""
        asked_ns = time.monotonic_ns()
        hub = self.server
        name, _, part = self.path.lstrip("/").partition("//")
        if part:
            self._answer(DONE, hub.parts[name][int(part)])
            return
        there = {one: hub.whole[one] for one in name.split(",") if one in hub.whole}
        for one in there:
            hub.log("taken", name=one, asked_ns=asked_ns)
        if there:
            work(hub.work_s)
            for one in there:
                hub.log("given", name=one)
            self._answer(DONE, json.dumps(there).encode())
        else:
            hub.log("asked_in_vain", name=name, asked_ns=asked_ns)
            self._answer(NOT_YET)


class Caller:
    """Connections to a hub that stay open."""

    def __init__(self, address: tuple[str, int], connections: int) -> None:
        self._address = address
        self._free: list[HTTPConnection] = []
        self._pool = ThreadPoolExecutor(connections)

    def _call(self, method: str, path: str, body: bytes | None = None) -> tuple[HTTPResponse, bytes]:
        try:
            connection = self._free.pop()
        except IndexError:
            connection = self._connected()
        connection.request(method, path, body)
        answer = connection.getresponse()
        content = answer.read()
        self._free.append(connection)
        return answer, content

    def _connected(self) -> HTTPConnection:
        """As soon as it listens."""
        give_up = time.monotonic() + _LISTENS_S
        while True:
            connection = HTTPConnection(*self._address)
            try:
                connection.connect()
            except ConnectionRefusedError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)
            else:
                return connection

    def put(self, name: str, content: bytes, part_bytes: int) -> None:
        """An object in parts."""
        pieces = [content[i : i + part_bytes] for i in range(0, len(content), part_bytes)]
        paths = [f"/{name}/{i}/{len(pieces)}" for i in range(len(pieces))]
        list(self._pool.map(lambda path, piece: self._call("PUT", path, piece), paths, pieces))

    def ask(self, *names: str) -> dict[str, int]:
        """How many parts those have that are there."""
        _, content = self._call("GET", f"/{','.join(names)}")
        return dict(json.loads(content or "{}"))

    def get(self, name: str, parts: int) -> bytes:
        """All of it."""
        return b"".join(self._pool.map(lambda i: self._call("GET", f"/{name}//{i}")[1], range(parts)))

    def wait(self, name: str, every_s: float) -> int:
        """Ask again and again. :returns: how many parts it has"""
        while not (there := self.ask(name)):
            time.sleep(every_s)
        return there[name]


def server(settings: Settings) -> None:
    """Rounds: a model to each client, an answer of each."""
    log, hub = Log(settings, "server"), Caller(settings.hub, settings.connections)
    while settings.waits and not (Path(settings.directory) / "go").exists():
        time.sleep(0.05)
    for number in range(1, settings.rounds + 1):
        time.sleep(settings.pause_s)
        log("round_start", round=number)
        log("send_start", round=number)
        for client in settings.clients:
            hub.put(f"model-{number}-{client}", bytes(settings.message_bytes), settings.part_bytes)
        log("sent", round=number)
        missing = list(settings.clients)
        while missing:
            time.sleep(settings.server_poll_s)
            for name, parts in hub.ask(*(f"update-{number}-{client}" for client in missing)).items():
                hub.get(name, parts)
                client = name.split("-", 2)[2]
                missing.remove(client)
                log("update_received", round=number, client_id=client)
        log("wait_end", round=number)
        work(settings.aggregate_s)
        log("aggregate_end", round=number)
        log("round_end", round=number)
    log("end")


def node(settings: Settings, client: str, file: Path) -> None:
    """Polls the hub, and starts a process for every model."""
    log, hub = Log(settings, client), Caller(settings.hub, settings.connections)
    local = Hub((_LOCAL, settings.node_ports[settings.clients.index(client)]), log, 0.0)
    threading.Thread(target=local.serve_forever, daemon=True).start()
    for number in range(1, settings.rounds + 1):
        parts = hub.wait(f"model-{number}-{client}", settings.node_poll_s)
        model = hub.get(f"model-{number}-{client}", parts)
        pieces = [model[i : i + settings.part_bytes] for i in range(0, len(model), settings.part_bytes)]
        with local.changed:
            local.parts["model"] = dict(enumerate(pieces))
            local.whole["model"] = len(pieces)
        log("starting", round=number)
        command = [sys.executable, "-m", "tests.generic_deployment", str(file), "task", client, str(number)]
        task = subprocess.Popen(command)
        update = f"update-{number}"
        local.wait_for(update)
        content = b"".join(piece for _, piece in sorted(local.parts[update].items()))
        log("forwarding", round=number)
        hub.put(f"{update}-{client}", content, settings.part_bytes)
        task.wait()


def task(settings: Settings, client: str, number: int) -> None:
    """Trains, in a process of its own."""
    log = Log(settings, f"{client}-task-{number}")
    hub = Caller((_LOCAL, settings.node_ports[settings.clients.index(client)]), settings.connections)
    parts = hub.ask("model")["model"]
    log("read_start", round=number, client_id=client)
    model = hub.get("model", parts)
    log("train_start", round=number, client_id=client)
    work(settings.train_s)
    log("train_end", round=number, client_id=client)
    hub.put(f"update-{number}", model, settings.part_bytes)
    log("end")


def main() -> None:
    """Play a role."""
    file, role, *more = sys.argv[1:]
    settings = Settings.load(Path(file))
    if role == "hub":
        Hub(settings.hub, Log(settings, "hub"), settings.hub_work_s).serve_forever()
    elif role == "server":
        server(settings)
    elif role == "node":
        node(settings, more[0], Path(file))
    else:
        task(settings, more[0], int(more[1]))


if __name__ == "__main__":
    main()
