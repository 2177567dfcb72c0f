"""The FL client: `python -m fl.client`.

It says HELLO, and from then on trains whatever model arrives and sends the result
back until DONE. The request for round k+1 is the update of round k, so a client's
next message never waits for the server to ask.

Persistent mode keeps one stream. Reconnect mode (FL_RECONNECT=1) closes its channel
after training and sends the update as the first message of a new one: one new
connection per client and round, always between compute and update, so the
handshakes are on every round's path. What the server does is the same.

Events on standard output per round: `model_received` and `train_start` (the whole
model in our hands, not yet read), `train_end` (the update laid out for gRPC),
`update_sent` (gRPC has passed it on); `hello_sent` at the beginning.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any

import grpc
import torch

from fl import data, rpc, wire
from fl.config import ClientConfig
from fl.errors import FLError, Terminated, TransportError
from fl.events import EventLog, now
from fl.injection import Injection
from fl.model import Model
from fl.partition import partition
from fl.process import raise_on_sigterm
from fl.training import train
from fl.wire import Kind

__all__ = ("main", "run")

# How often a client that cannot reach the server says so on stderr.
_NOTICE_S = 10.0


def run(config: ClientConfig, log: EventLog | None = None, injection: Injection | None = None) -> int:
    """Take part in a run until DONE; returns the number of rounds trained.

    :raises FLError: bad data, a message that is not ours, or an established stream that broke.
    """
    log = log or EventLog(client_id=config.client_id)
    injection = injection or Injection()
    torch.set_num_threads(1)
    training = data.load(config.dataset, config.data_dir).train
    parts = partition(
        training.labels, clients=config.clients, seed=config.seed, distribution=config.distribution
    )
    part = parts[config.client_index][: config.max_samples or None]
    model = Model(name=config.model)
    rounds = 0
    stream = _Stream(config.server, config.http2_window_bytes)
    try:
        stream.send(
            wire.encode(Kind.HELLO, 0, client_id=config.client_id), partial(log.emit, "hello_sent", 0)
        )
        while True:
            raw = stream.receive()
            arrived = now()
            message = wire.decode(raw, model.vector.size)
            if message.kind is Kind.DONE:
                return rounds
            number = message.round
            log.emit("model_received", number, at=arrived)
            log.emit("train_start", number, at=arrived)
            injection.cpu_wait(number, log)
            if config.reconnect:
                stream.finish_sending()
            model.load(message.body)
            del raw, message  # 4.8 MB that training does not need
            loss = train(
                model, training, part, seed=config.seed, client_index=config.client_index, round_number=number
            )
            injection.compute(number, log)
            update = wire.encode(
                Kind.UPDATE, number, client_id=config.client_id, num_examples=len(part), body=model.vector
            )
            log.emit("train_end", number, num_examples=len(part), loss=loss)
            injection.cpu_wait(number, log)
            if config.reconnect:
                stream.close()
                stream = _Stream(config.server, config.http2_window_bytes)
            stream.send(update, partial(log.emit, "update_sent", number))
            rounds += 1
    finally:
        stream.close()


class _Stream:
    """One channel with one Train stream on it. It connects on the first `send`, for as long as that takes.

    At most one message is on its way out at a time, as each is answered before the next.
    """

    def __init__(self, server: str, window_bytes: int) -> None:
        self._server = server
        options = rpc.CLIENT_OPTIONS + rpc.window_options(window_bytes)
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._on_sent: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self._passed_on = threading.Event()
        self._channel = grpc.insecure_channel(server, options=options)
        method = self._channel.stream_stream(rpc.METHOD_PATH)
        # wait_for_ready: a server that is not there yet is waited for, not an error.
        self._call: Any = method(self._requests(), wait_for_ready=True)
        self._ended = False
        self._call.add_done_callback(self._end)

    def _end(self, _call: Any) -> None:
        self._ended = True
        self._passed_on.set()

    def _requests(self) -> Iterator[bytes]:
        # gRPC's thread asks for the next message once it has passed the one before on to the transport.
        while (message := self._outbox.get()) is not None:
            yield message
            del message
            self._mark_sent()

    def _mark_sent(self) -> None:
        with self._lock:
            on_sent, self._on_sent = self._on_sent, None
            if on_sent is not None:
                on_sent()
        self._passed_on.set()

    def send(self, message: bytes, on_sent: Callable[[], object]) -> None:
        """Queue `message`; `on_sent` is called once, from another thread, when gRPC has passed it on."""
        self._on_sent = on_sent
        self._passed_on.clear()
        if self._ended:  # while we trained: nothing will be passed on, `receive` says why
            self._passed_on.set()
        self._outbox.put(message)

    def receive(self) -> bytes:
        """The server's next message, once what was sent last has gone out.

        :raises TransportError: the stream ended.
        """
        waited_s = 0.0
        while not self._passed_on.wait(_NOTICE_S):
            waited_s += _NOTICE_S
            print(
                f"fl-client: still trying to send to {self._server} after {waited_s:g} s",
                file=sys.stderr,
                flush=True,
            )
        try:
            raw: bytes = next(self._call)
        except StopIteration:
            raise TransportError(
                f"the server {self._server} closed the stream before the last round"
            ) from None
        except grpc.RpcError as error:
            details = " ".join(str(self._call.details()).split())
            raise TransportError(
                f"the stream to {self._server} broke: {self._call.code().name} ({details})"
            ) from error
        self._mark_sent()  # an answer proves it, should the stream have ended before gRPC's thread noticed
        return raw

    def finish_sending(self) -> None:
        """Half-close: the server ends the stream in its own time, while we are busy."""
        self._outbox.put(None)

    def close(self) -> None:
        """Close stream and connection without waiting for the other side."""
        self._outbox.put(None)
        self._channel.close()


def main() -> int:
    """Run as the environment says; the exit status, with one line on stderr when it is not 0."""
    try:
        raise_on_sigterm()
        run(ClientConfig.from_env(os.environ), injection=Injection.from_env(os.environ))
    except Terminated as end:
        return end.exit_code
    except FLError as error:
        print(f"{os.environ.get('POD_NAME', 'fl-client')}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
