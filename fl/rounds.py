"""The server's round loop: open, wait, aggregate, evaluate, back to back.

The model is laid out as bytes once a round, and every client gets those same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from fl import data, wire
from fl.aggregation.step import ServerStep
from fl.config import ServerConfig
from fl.errors import DataError, RoundError
from fl.events import EventLog, Stamp
from fl.injection import Injection
from fl.model import Model
from fl.rendezvous import Rendezvous
from fl.secure.collection import SecureCollection
from fl.training import evaluate
from fl.wire import Kind, Message

__all__ = ("TARGET_ACCURACY", "Rounds")

TARGET_ACCURACY = 0.95


class Rounds:
    """The rounds of one run.

    :param test: what the model is evaluated on.
    """

    def __init__(
        self,
        config: ServerConfig,
        rendezvous: Rendezvous,
        model: Model,
        test: data.Dataset,
        log: EventLog,
        injection: Injection,
    ) -> None:
        self._config = config
        self._rendezvous = rendezvous
        self._model = model
        self._test = test
        self._log = log
        self._injection = injection
        self._secure: SecureCollection | None = None
        if config.options.secure_aggregation == "masks":
            self._secure = SecureCollection(config, rendezvous, model.vector.size, log)
        self._step = ServerStep(config.options, model.vector.size, log, rounds=config.rounds)
        self._first_start_ns = 0
        self._reached = False

    def run(self) -> Iterator[int]:
        """Yield the number of each round that is done.

        :raises RoundError: too few clients, at the beginning or in a round.
        :raises DataError: a checkpoint cannot be written.
        """
        config = self._config
        ready = self._rendezvous.wait_for_clients(config.round_deadline_s)
        if len(ready) < config.min_clients:
            raise RoundError(
                f"{len(ready)} of {config.participants} clients came within {config.round_deadline_s:g} s"
                f" ({', '.join(ready) or 'none'}), {config.min_clients} are needed"
            )
        edge: Stamp | None = None  # a round starts at the instant at which the one before ended
        for number in range(1, config.rounds + 1):
            deadline_s = time.monotonic() + config.round_deadline_s
            started = self._log.emit("round_start", number, at=edge)
            self._first_start_ns = self._first_start_ns or started.monotonic_ns
            updates = self._train(number, deadline_s)
            self._injection.aggregation(number, self._log)
            self._log.emit("aggregate_end", number)
            if config.checkpoint_dir is not None:
                self._keep(config.checkpoint_dir)
            accuracy: float | None = None
            if number % config.eval_every == 0 or number == config.rounds:
                accuracy = self._evaluate(number)
            edge = self._log.emit("round_end", number, updates=updates, accuracy=accuracy)
            yield number

    def _train(self, number: int, deadline_s: float) -> int:
        """Move the model by one round; returns how many updates are in it."""
        encoded = wire.encode(Kind.MODEL, number, body=self._model.vector)
        self._log.emit("send_start", number, message_bytes=len(encoded))
        vector = self._model.vector
        if self._secure is not None:
            summed, weight, clients = self._secure.collect(number, encoded, deadline_s)
            self._model.load(self._step.after_sum(vector, summed, weight, clients, number))
            return clients
        updates = self._collect(number, encoded, deadline_s)
        self._model.load(self._step.next_model(vector, updates, number))
        return len(updates)

    def _collect(self, number: int, encoded: bytes, deadline_s: float) -> list[Message]:
        config = self._config
        self._rendezvous.open_round(number, encoded)
        self._rendezvous.wait_for_updates(deadline_s)
        updates = self._rendezvous.close_round()
        if len(updates) < config.min_clients:
            came = ", ".join(update.client_id for update in updates) or "none"
            raise RoundError(
                f"round {number}: {len(updates)} of {config.participants} updates came within"
                f" {config.round_deadline_s:g} s ({came}), {config.min_clients} are needed"
            )
        return updates

    def _keep(self, directory: Path) -> None:
        """Write the model beside the last one's file, then in its place."""
        file = directory / "model.f32"
        try:
            (directory / "model.new").write_bytes(self._model.vector.tobytes())
            (directory / "model.new").rename(file)
        except OSError as error:
            raise DataError(f"the model cannot be kept in {file}: {error.strerror}") from error

    def _evaluate(self, number: int) -> float:
        accuracy, loss = evaluate(self._model, self._test)
        stamp = self._log.emit("evaluate_end", number, accuracy=accuracy, loss=loss)
        if accuracy >= TARGET_ACCURACY and not self._reached:
            self._reached = True
            seconds = (stamp.monotonic_ns - self._first_start_ns) / 1e9
            self._log.emit(
                "target_reached", number, accuracy=accuracy, target=TARGET_ACCURACY, seconds=seconds
            )
        return accuracy
