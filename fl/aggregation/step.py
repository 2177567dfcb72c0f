"""A round's updates to the next model, as the run's options say.

The published workload's way (the weighted mean of models as they came) stays by itself: it costs one
pass and is exact to the last bit. Everything else works on differences from the round's model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fl import compression
from fl.aggregation.inspection import Inspector
from fl.aggregation.mean import fedavg
from fl.aggregation.optimizers import ServerOptimizer
from fl.aggregation.robust import krum, median, trimmed_mean
from fl.errors import RoundError
from fl.events import EventLog
from fl.options import FlOptions
from fl.privacy.mechanism import Mechanism
from fl.wire import Encoding, Message, Vector

__all__ = ("ServerStep",)


class ServerStep:
    """Keeps what the server's optimiser remembers between rounds.

    :param size: the model's number of values.
    :param rounds: of the whole run (privacy is spent over all of them).
    """

    def __init__(self, options: FlOptions, size: int, log: EventLog, *, rounds: int) -> None:
        """:raises ConfigError: the options need a library that is not installed."""
        self._options = options
        self._mechanism = Mechanism(options, rounds) if options.privacy == "dp" else None
        self._log = log
        self._inspector = Inspector() if options.inspects else None
        self._optimizer: ServerOptimizer | None = None
        if options.algorithm in ("fedadagrad", "fedadam", "fedyogi"):
            self._optimizer = ServerOptimizer(
                options.algorithm, size=size, server_lr=options.of("server_lr"), tau=options.of("server_tau")
            )

    def next_model(self, model: Vector, updates: Sequence[Message], round_number: int) -> Vector:
        """What the next round trains on; `model` is left alone.

        Logs one `update_inspected` per client where updates are looked at: norm, norm_ratio,
        cosine, unusual (a list of reasons, empty for an ordinary one). `privacy_spent` says what has
        been spent so far where noise was added: epsilon, delta, noise_multiplier, clipped_by_server
        (updates that came longer than they may be; null where the server cannot see that).

        :raises RoundError: too few updates for the aggregate.
        """
        if self._takes_models(updates):
            return fedavg([(update.body, update.num_examples) for update in updates])
        deltas = [_delta(update, model) for update in updates]
        if self._inspector is not None:
            self._inspect(self._inspector, deltas, updates, round_number)
        try:
            centre = self._centre(deltas, updates, round_number)
        except ValueError as error:
            raise RoundError(f"round {round_number}: {error}") from error
        return self._moved(model, centre, round_number)

    def after_sum(
        self,
        model: Vector,
        summed: npt.NDArray[np.float64],
        weight: int,
        clients: int,
        round_number: int,
    ) -> Vector:
        """Likewise, where only the sum of so many clients' weighted updates is known."""
        if self._mechanism is None:
            return self._moved(model, (summed / weight).astype(np.float32), round_number)
        # With privacy every weight is 1, and clients have clipped; nobody else can.
        centre = self._mechanism.noised_mean(summed, clients)
        self._log_privacy(self._mechanism, round_number, None)
        return self._moved(model, centre, round_number)

    def _moved(self, model: Vector, centre: Vector, round_number: int) -> Vector:
        if self._optimizer is not None:
            centre = self._optimizer.step(centre, round_number)
        return model + centre

    def _takes_models(self, updates: Sequence[Message]) -> bool:
        plain = self._optimizer is None and self._inspector is None and self._mechanism is None
        return plain and all(update.encoding is Encoding.FLOAT32 for update in updates)

    def _inspect(
        self, inspector: Inspector, deltas: Sequence[Vector], updates: Sequence[Message], round_number: int
    ) -> None:
        looks = inspector.look([update.client_id for update in updates], deltas)
        for update, look in zip(updates, looks, strict=True):
            self._log.emit(
                "update_inspected",
                round_number,
                client_id=update.client_id,
                norm=look.norm,
                norm_ratio=look.norm_ratio,
                cosine=look.cosine,
                unusual=list(look.unusual),
            )

    def _centre(self, deltas: Sequence[Vector], updates: Sequence[Message], round_number: int) -> Vector:
        if self._mechanism is not None:
            mean, longer = self._mechanism.mean(deltas)
            self._log_privacy(self._mechanism, round_number, longer)
            return mean
        kind = self._options.aggregation
        if kind == "median":
            return median(deltas)
        if kind == "trimmed-mean":
            return trimmed_mean(deltas, self._options.of("byzantine"))
        if kind == "krum":
            chosen = krum(deltas, self._options.of("byzantine"))
            self._log.emit("update_chosen", round_number, client_id=updates[chosen].client_id)
            return deltas[chosen]
        return fedavg([(d, u.num_examples) for d, u in zip(deltas, updates, strict=True)])

    def _log_privacy(self, mechanism: Mechanism, round_number: int, longer: int | None) -> None:
        accountant = mechanism.accountant
        self._log.emit(
            "privacy_spent",
            round_number,
            epsilon=accountant.epsilon(round_number),
            delta=accountant.delta,
            noise_multiplier=accountant.noise_multiplier,
            clipped_by_server=longer,
        )


def _delta(update: Message, model: Vector) -> Vector:
    if update.encoding is Encoding.FLOAT32:
        return np.subtract(update.body, model)
    return compression.decode(update.encoding, update.payload, len(model))
