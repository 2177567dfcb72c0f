"""Where the server's streams and its round loop meet; threads and no gRPC.

Each stream is half-duplex: what arrives (HELLO or UPDATE) is answered with the open
round's model as soon as there is a round to which this client has not contributed.
That one rule serves clients that wait for the first round, that come back on a new
connection, that restart in the middle of a round and that finish a round late.

One condition guards everything. Callers are the gRPC handler threads (`exchange`)
and the round loop (the rest).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fl import wire
from fl.errors import RoundError, WireError
from fl.events import EventLog, now
from fl.wire import Kind, Message

__all__ = ("Rendezvous",)


class Rendezvous:
    """The meeting place of a run with `clients` clients."""

    def __init__(self, clients: int, log: EventLog) -> None:
        self._clients = clients
        self._log = log
        self._changed = threading.Condition()
        self._round = 0
        self._model: bytes | None = None  # None: no round is open
        self._farewell: bytes | None = None
        self._failure: str | None = None
        self._updates: dict[str, Message] = {}
        # Each client's newest stream (an older one that still waits gives up) and whether it is open.
        self._streams: dict[str, tuple[int, Callable[[], bool]]] = {}

    # handler threads

    def exchange(self, message: Message, stream: int, is_open: Callable[[], bool]) -> bytes | None:
        """Take in what a client sent and wait for what it gets in return.

        :param stream: a number that identifies the stream it came on.
        :param is_open: False once the stream is gone; `wake` makes this look again.
        :returns: an encoded MODEL or DONE, or None when there is nobody to answer.
        :raises WireError: not something that a client sends.
        :raises RoundError: the run has failed meanwhile; says why.
        """
        client_id = message.client_id
        if message.kind not in (Kind.HELLO, Kind.UPDATE):
            raise WireError(f"a client sent {message.kind.name}, expected HELLO or UPDATE")
        if not client_id:
            raise WireError(f"{message.kind.name} carries no client id")
        with self._changed:
            self._admit(client_id)
            if message.kind is Kind.HELLO:
                self._log.emit("client_ready", self._round, client_id=client_id)
            self._streams[client_id] = (stream, is_open)
            if message.kind is Kind.UPDATE:
                self._take(message)
            self._changed.notify_all()
            while is_open() and self._streams.get(client_id, (-1,))[0] == stream:
                if self._failure is not None:
                    raise RoundError(self._failure)
                if self._farewell is not None:
                    return self._farewell
                if self._model is not None and client_id not in self._updates:
                    return self._model
                self._changed.wait()
        return None

    def wake(self) -> None:
        """Let every waiting stream look whether it still has a reader."""
        with self._changed:
            self._changed.notify_all()

    def _admit(self, client_id: str) -> None:
        # A pod that replaces a dead one comes under a new name and takes its place.
        if client_id in self._streams or len(self._streams) < self._clients:
            return
        gone = [known for known, (_, is_open) in self._streams.items() if not is_open()]
        if not gone:
            raise WireError(
                f"{client_id} is client {self._clients + 1} of {self._clients}: FL_CLIENTS is too low"
            )
        del self._streams[gone[0]]

    def _take(self, message: Message) -> None:
        if message.num_examples < 1:
            raise WireError(f"{message.client_id} trained on no examples")
        on_time = self._model is not None and message.round == self._round
        event = "update_received" if on_time and message.client_id not in self._updates else "update_late"
        self._log.emit(
            event,
            message.round,
            client_id=message.client_id,
            num_examples=message.num_examples,
            body_bytes=message.body_bytes,
        )
        if event == "update_received":
            self._updates[message.client_id] = message

    # the round loop

    def wait_for_clients(self, timeout_s: float) -> list[str]:
        """Wait until all clients have said HELLO or the time is up; returns who has, sorted."""
        self._wait(lambda: len(self._streams) >= self._clients, time.monotonic() + timeout_s)
        with self._changed:
            return sorted(self._streams)

    def open_round(self, round_number: int, model: bytes) -> None:
        """Hand the same bytes to every stream that waits, and to those that come later."""
        with self._changed:
            self._round, self._model = round_number, model
            self._changed.notify_all()

    def wait_for_updates(self, deadline_s: float) -> None:
        """Wait until every client has contributed or until `deadline_s` on `time.monotonic`."""
        self._wait(lambda: len(self._updates) >= self._clients, deadline_s)

    def close_round(self) -> list[Message]:
        """End the wait: its updates in the order of client ids; later ones are logged as late.

        Logs `wait_end`, then each client that is missing.
        """
        with self._changed:
            updates = [self._updates[client_id] for client_id in sorted(self._updates)]
            self._log.emit("wait_end", self._round, updates=len(updates), at=now())
            for client_id in sorted(set(self._streams) - set(self._updates)):
                self._log.emit("client_missing", self._round, client_id=client_id)
            self._updates, self._model = {}, None
            return updates

    def finish(self, rounds: int) -> None:
        """Send DONE to everybody, now and from now on."""
        with self._changed:
            self._farewell = wire.encode(Kind.DONE, rounds)
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """Tell everybody who waits why there will be no further round."""
        with self._changed:
            self._failure = reason
            self._changed.notify_all()

    def _wait(self, reached: Callable[[], bool], deadline_s: float) -> None:
        with self._changed:
            while not reached():
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return
                self._changed.wait(left_s)
