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
from functools import partial

from fl import wire
from fl.config import ClientConfig
from fl.errors import FLError, Terminated
from fl.events import EventLog, now
from fl.injection import Injection
from fl.process import raise_on_sigterm
from fl.stream import ClientStream
from fl.trainer import Trainer
from fl.updates import UpdateMaker
from fl.wire import Kind

__all__ = ("main", "run")


def run(config: ClientConfig, log: EventLog | None = None, injection: Injection | None = None) -> int:
    """Take part in a run until DONE; returns the number of rounds trained.

    :raises FLError: bad data, a message that is not ours, or an established stream that broke.
    """
    log = log or EventLog(client_id=config.client_id)
    injection = injection or Injection()
    trainer = _trainer(config)
    updates = UpdateMaker(config, trainer.size)
    rounds = 0
    stream = ClientStream(config.server, config.http2_window_bytes)
    try:
        stream.send(
            wire.encode(Kind.HELLO, 0, client_id=config.client_id), partial(log.emit, "hello_sent", 0)
        )
        while True:
            raw = stream.receive()
            arrived = now()
            message = wire.decode(raw, trainer.size)
            if message.kind is Kind.DONE:
                return rounds
            number = message.round
            log.emit("model_received", number, at=arrived)
            log.emit("train_start", number, at=arrived)
            injection.cpu_wait(number, log)
            if config.reconnect:
                stream.finish_sending()
            trainer.load(message.body)
            model = message.body if updates.needs_model else None
            del raw, message  # 4.8 MB that plain training does not need
            trained = trainer.train(number)
            injection.compute(number, log)
            update = updates.encode(trained, model, number)
            log.emit("train_end", number, num_examples=trained.num_examples, loss=trained.loss)
            injection.cpu_wait(number, log)
            if config.reconnect:
                stream.close()
                stream = ClientStream(config.server, config.http2_window_bytes)
            stream.send(update, partial(log.emit, "update_sent", number))
            rounds += 1
    finally:
        stream.close()


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
