"""Where the server's streams and its round loop meet; threads and no gRPC.

Each stream is half-duplex: what arrives (HELLO or UPDATE) is answered with the open
round's model as soon as there is a round to which this client has not contributed.
That one rule serves clients that wait for the first round, that come back on a new
connection, that restart in the middle of a round and that finish a round late.

A round is one exchange (model down, update up), or several one after the other, each with
an answer of its own for each client that is still in it (`fl.secure`). Only a round's first
exchange is for everybody: who says HELLO later has forgotten what the round is about, and waits.

One lock guards everything. Callers are the gRPC handler threads (`exchange`) and the round loop (the rest).
Each waits for what concerns it: were every stream woken by every arrival, 200 clients would cost 40,000
wake-ups a round.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from fl import wire
from fl.errors import RoundError, WireError
from fl.events import EventLog, now
from fl.wire import Kind, Message

__all__ = ("Rendezvous",)

_CLIENTS_SEND = (Kind.HELLO, Kind.UPDATE, Kind.ADVERTISE, Kind.SHARES, Kind.MASKED, Kind.UNMASK)


class Rendezvous:
    """The meeting place of a run with `clients` clients."""

    def __init__(self, clients: int, log: EventLog) -> None:
        self._clients = clients
        self._log = log
        self._lock = threading.RLock()
        self._arrived = threading.Condition(self._lock)  # for the round loop
        self._waiting: dict[tuple[str, int], threading.Condition] = {}  # by client id and stream
        self._round = 0
        self._accepts = Kind.UPDATE
        # What goes out in the open exchange: to everybody, or to each by client id; None: nothing is open.
        self._answers: bytes | dict[str, bytes] | None = None
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
        if message.kind not in _CLIENTS_SEND:
            raise WireError(f"a client sent {message.kind.name}, expected HELLO or UPDATE")
        if not client_id:
            raise WireError(f"{message.kind.name} carries no client id")
        with self._lock:
            self._admit(client_id)
            if message.kind is Kind.HELLO:
                self._log.emit("client_ready", self._round, client_id=client_id)
                if isinstance(self._answers, dict):
                    self._answers.pop(client_id, None)
            self._streams[client_id] = (stream, is_open)
            if message.kind is not Kind.HELLO:
                self._take(message)
            self._arrived.notify_all()
            self._let_look(lambda client, _: client == client_id)
            mine = self._waiting[client_id, stream] = threading.Condition(self._lock)
            try:
                while is_open() and self._streams.get(client_id, (-1,))[0] == stream:
                    if self._failure is not None:
                        raise RoundError(self._failure)
                    if self._farewell is not None:
                        return self._farewell
                    answer = self._answer(client_id)
                    if answer is not None and client_id not in self._updates:
                        return answer
                    mine.wait()
            finally:
                if self._waiting.get((client_id, stream)) is mine:
                    del self._waiting[client_id, stream]
        return None

    def wake(self, stream: int) -> None:
        """Let a waiting stream look whether it still has a reader."""
        with self._lock:
            self._let_look(lambda _, number: number == stream)

    def _let_look(self, which: Callable[[str, int], bool] = lambda _client, _stream: True) -> None:
        for (client_id, stream), waiting in self._waiting.items():
            if which(client_id, stream):
                waiting.notify()

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

    def _answer(self, client_id: str) -> bytes | None:
        return self._answers.get(client_id) if isinstance(self._answers, dict) else self._answers

    def _take(self, message: Message) -> None:
        if message.kind in (Kind.UPDATE, Kind.MASKED) and message.num_examples < 1:
            raise WireError(f"{message.client_id} trained on no examples")
        expected = message.kind is self._accepts and self._answer(message.client_id) is not None
        on_time = expected and message.round == self._round and message.client_id not in self._updates
        self._log_arrival(message, "received" if on_time else "late")
        if on_time:
            self._updates[message.client_id] = message

    def _log_arrival(self, message: Message, how: str) -> None:
        client_id, body_bytes = message.client_id, message.body_bytes
        if message.kind in (Kind.UPDATE, Kind.MASKED):
            self._log.emit(
                f"update_{how}",
                message.round,
                client_id=client_id,
                num_examples=message.num_examples,
                body_bytes=body_bytes,
            )
        else:
            self._log.emit(
                f"message_{how}",
                message.round,
                client_id=client_id,
                kind=message.kind.name,
                body_bytes=body_bytes,
            )

    # the round loop

    def wait_for_clients(self, timeout_s: float) -> list[str]:
        """Wait until all clients have said HELLO or the time is up; returns who has, sorted."""
        self._wait(lambda: len(self._streams) >= self._clients, time.monotonic() + timeout_s)
        with self._lock:
            return sorted(self._streams)

    def open_round(self, round_number: int, model: bytes, accepts: Kind = Kind.UPDATE) -> None:
        """Hand the same bytes to every stream that waits, and to those that come later."""
        self._open(round_number, model, accepts)

    def open_exchange(self, answers: Mapping[str, bytes], accepts: Kind) -> None:
        """Go on with the round: to each client its own bytes, and to nobody else."""
        self._open(self._round, dict(answers), accepts)

    def _open(self, round_number: int, answers: bytes | dict[str, bytes], accepts: Kind) -> None:
        with self._lock:
            self._round, self._answers, self._accepts = round_number, answers, accepts
            self._let_look()

    def wait_for_updates(self, deadline_s: float) -> None:
        """Wait until everybody who is in it has contributed or until `deadline_s` on `time.monotonic`."""
        self._wait(self._is_complete, deadline_s)

    def _is_complete(self) -> bool:
        if isinstance(self._answers, dict):
            return self._answers.keys() <= self._updates.keys()
        return len(self._updates) >= self._clients

    def close_exchange(self) -> list[Message]:
        """End the wait: what came, in the order of client ids; later ones are logged as late."""
        with self._lock:
            updates = [self._updates[client_id] for client_id in sorted(self._updates)]
            self._updates, self._answers = {}, None
            return updates

    def close_round(self) -> list[Message]:
        """Likewise, for the round's last or only exchange.

        Logs `wait_end`, then each client that is missing.
        """
        with self._lock:
            self._log.emit("wait_end", self._round, updates=len(self._updates), at=now())
            for client_id in sorted(set(self._streams) - set(self._updates)):
                self._log.emit("client_missing", self._round, client_id=client_id)
            return self.close_exchange()

    def finish(self, rounds: int) -> None:
        """Send DONE to everybody, now and from now on."""
        with self._lock:
            self._farewell = wire.encode(Kind.DONE, rounds)
            self._let_look()

    def fail(self, reason: str) -> None:
        """Tell everybody who waits why there will be no further round."""
        with self._lock:
            self._failure = reason
            self._let_look()

    def _wait(self, reached: Callable[[], bool], deadline_s: float) -> None:
        with self._lock:
            while not reached():
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return
                self._arrived.wait(left_s)
