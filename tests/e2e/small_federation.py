"""The smallest federation there is: a server that hands out bytes round by round, clients that answer.

``python -m tests.e2e.small_federation server ADDRESS ROUNDS CLIENTS BYTES PAUSE_S`` prints the port, then a
JSON event a line; ``... client ADDRESS:PORT BYTES COMPUTE_S [FORKS]``. Plain TCP with a length before each
message, so that it costs next to nothing and starts at once.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time

_LENGTH = struct.Struct("!I")


def _log(event: str, **more: object) -> None:
    now = {"time_unix_ns": time.time_ns(), "time_monotonic_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC)}
    print(json.dumps({"event": event, **now, **more}), flush=True)


def _send(connection: socket.socket, count: int) -> None:
    connection.sendall(_LENGTH.pack(count) + bytes(count))


def _receive(connection: socket.socket) -> int:
    (count,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    _exactly(connection, count)
    return int(count)


def _exactly(connection: socket.socket, count: int) -> bytes:
    pieces = []
    while count:
        piece = connection.recv(min(count, 1 << 16))
        if not piece:
            raise EOFError
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def server(address: str, rounds: int, clients: int, count: int, pause_s: float) -> None:
    """Begin when all have come; who comes later takes part from the next round on, who goes is left out."""
    with socket.create_server((address, 0)) as listener:
        _log("listening", port=listener.getsockname()[1])
        connections = [listener.accept()[0] for _ in range(clients)]
        listener.setblocking(False)
        for number in range(1, rounds + 1):
            time.sleep(pause_s)
            try:
                late, _ = listener.accept()
                late.setblocking(True)
                connections.append(late)
            except BlockingIOError:
                pass
            _log("round_start", round=number)
            for connection in list(connections):
                try:
                    _send(connection, count)
                except OSError:
                    connections.remove(connection)
            for connection in list(connections):
                try:
                    _receive(connection)
                except (EOFError, OSError):
                    connections.remove(connection)
            _log("round_end", round=number)


def client(target: str, count: int, compute_s: float) -> None:
    """Answer until the server has gone."""
    host, _, port = target.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        while True:
            try:
                _receive(connection)
                time.sleep(compute_s)
                _send(connection, count)
            except (EOFError, OSError):
                return


def main(role: str, where: str, *numbers: str) -> None:
    """Play one of the parts."""
    if role == "server":
        rounds, clients, count, pause_s = numbers
        server(where, int(rounds), int(clients), int(count), float(pause_s))
    elif len(numbers) > 2:  # as a process that a launcher starts
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        else:
            client(where, int(numbers[0]), float(numbers[1]))
    else:
        client(where, int(numbers[0]), float(numbers[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
