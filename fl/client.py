"""The FL client: `python -m fl.client`.

It says HELLO, and from then on trains whatever model arrives and sends the result
back until DONE. The request for round k+1 is the update of round k, so a client's
next message never waits for the server to ask.

Persistent mode keeps one stream. Reconnect mode (FL_RECONNECT=1) closes its channel
after training and sends the update as the first message of a new one: one new
connection per client and round, always between compute and update, so the
handshakes are on every round's path. What the server does is the same. A persistent client does so once when
FL_SERVER_FILE has got another address: in the round whose training begins next.

With secure aggregation (`fl.secure`) a round has three further exchanges, which `SecureTurns` answers;
training lies between the INBOX and the MASKED update.

Events on standard output per round: `model_received` and `train_start` (the whole
model in our hands, not yet read), `train_end` (the update laid out for gRPC),
`update_sent` (gRPC has passed it on); `hello_sent` at the beginning.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

from fl import wire
from fl.config import ClientConfig
from fl.errors import FLError, Terminated
from fl.events import EventLog, Stamp, now
from fl.injection import Injection
from fl.process import raise_on_sigterm
from fl.stream import ClientStream
from fl.trainer import Trainer
from fl.updates import UpdateMaker
from fl.wire import Kind, Message, Vector

__all__ = ("main", "run")


def run(config: ClientConfig, log: EventLog | None = None, injection: Injection | None = None) -> int:
    """Take part in a run until DONE; returns the number of rounds trained.

    :raises FLError: bad data, a message that is not ours, or an established stream that broke.
    """
    return _Client(config, log or EventLog(client_id=config.client_id), injection or Injection()).run()


class _Client:
    def __init__(self, config: ClientConfig, log: EventLog, injection: Injection) -> None:
        self._config = config
        self._log = log
        self._injection = injection
        self._trainer = _trainer(config)
        self._updates = UpdateMaker(config, self._trainer.size)
        self._peer = ""  # to whom the stream goes
        self._stream = self._connect()
        self._renews = False  # this round's update goes over a new connection
        self._model: Vector | None = None  # what the round began with, where the update needs it

    def _connect(self) -> ClientStream:
        self._peer = self._config.peer
        return ClientStream(self._peer, self._config.http2_window_bytes, self._config.grpc_options)

    def run(self) -> int:
        rounds = 0
        try:
            hello = wire.encode(Kind.HELLO, 0, client_id=self._config.client_id)
            self._stream.send(hello, partial(self._log.emit, "hello_sent", 0))
            while True:
                raw = self._stream.receive()
                arrived = now()
                message = wire.decode(raw, self._trainer.size)
                del raw
                if message.kind is Kind.DONE:
                    return rounds
                number = message.round
                if message.kind is Kind.MODEL:
                    self._log.emit("model_received", number, at=arrived)
                if self._updates.secure is None:
                    self._begin_training(number, arrived)
                    self._load(message)
                    del message  # 4.8 MB that plain training does not need
                    self._train(number)
                    rounds += 1
                elif message.kind is Kind.INBOX:
                    self._begin_training(number, arrived)
                    self._train(number, message)
                    rounds += 1
                else:
                    if message.kind is Kind.MODEL:
                        self._load(message)
                    self._stream.send(self._updates.secure.answer(message), lambda: None)
        finally:
            self._stream.close()

    def _load(self, message: Message) -> None:
        self._trainer.load(message.body)
        self._model = message.body if self._updates.needs_model else None

    def _begin_training(self, number: int, arrived: Stamp) -> None:
        self._log.emit("train_start", number, at=arrived)
        self._injection.cpu_wait(number, self._log)
        self._renews = self._config.reconnect or self._config.peer != self._peer
        if self._renews:
            self._stream.finish_sending()

    def _train(self, number: int, inbox: Message | None = None) -> None:
        """Train what is loaded and send what came of it; `inbox` is what a masked update answers."""
        trained = self._trainer.train(number)
        self._injection.compute(number, self._log)
        update = self._updates.encode(trained, self._model, number, inbox)
        # Who trains nothing has none; null would say that it was no finite number.
        loss: dict[str, Any] = {} if trained.loss is None else {"loss": trained.loss}
        self._log.emit("train_end", number, num_examples=trained.num_examples, **loss)
        self._injection.cpu_wait(number, self._log)
        if self._renews:
            self._stream.close()
            self._stream = self._connect()
        self._stream.send(update, partial(self._log.emit, "update_sent", number))


def _trainer(config: ClientConfig) -> Trainer:
    # Imported late: a synthetic client is to do without PyTorch and its hundreds of megabytes.
    if config.options.client == "synthetic":
        from fl.synthetic import SyntheticTrainer

        return SyntheticTrainer(config)
    from fl.torch_trainer import TorchTrainer

    return TorchTrainer(config)


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
