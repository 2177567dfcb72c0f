"""From what training made of a model to the update on the wire: clipped, attacked, compressed or masked.

With differential privacy a client clips what it has trained (`fl.privacy`); an attacker does not care.
An attack is for experiments: the last `attackers` clients send something else than they trained.
`sign-flip` sends the step backwards, `scale` makes it so many times longer.
"""

from __future__ import annotations

import numpy as np

from fl import wire
from fl.compression import ENCODINGS, Compressor
from fl.config import ClientConfig
from fl.privacy.mechanism import clipped
from fl.secure.turns import SecureTurns
from fl.trainer import Trained
from fl.wire import Encoding, Kind, Message, Vector

__all__ = ("UpdateMaker",)


class UpdateMaker:
    """One client's updates; keeps what compression left out between rounds."""

    def __init__(self, config: ClientConfig, size: int) -> None:
        options = config.options
        self._client_id = config.client_id
        self._encoding = ENCODINGS[options.compression]
        self._factor = 1.0
        if options.attack != "none" and config.client_index >= config.clients - options.of("attackers"):
            self._factor = -1.0 if options.attack == "sign-flip" else float(options.of("attack_scale"))
        self._clip: float | None = options.of("dp_clip") if options.privacy == "dp" else None
        self._secure: SecureTurns | None = None
        if options.secure_aggregation == "masks":
            self._secure = SecureTurns(config.client_id, config.clients)
        self._compressor: Compressor | None = None
        if self._encoding is not Encoding.FLOAT32:
            self._compressor = Compressor(self._encoding, size=size, top_k=options.of("top_k"))

    @property
    def secure(self) -> SecureTurns | None:
        """The further messages of secure aggregation, if the run has it."""
        return self._secure

    @property
    def needs_model(self) -> bool:
        """Whether `encode` has to know what the round began with."""
        plain = self._factor == 1.0 and self._clip is None
        return not plain or self._compressor is not None or self._secure is not None

    def encode(
        self, trained: Trained, model: Vector | None, round_number: int, inbox: Message | None = None
    ) -> bytes:
        """The message that carries the update: UPDATE, or MASKED in answer to `inbox`."""
        vector, payload = trained.vector, None
        if model is not None:
            delta = self._delta(trained, model)
            if self._secure is not None and inbox is not None:
                # Where privacy is accounted for, every client counts alike.
                weight = 1 if self._clip is not None else trained.num_examples
                return self._secure.masked(inbox, delta, weight)
            if self._compressor is not None:
                payload = self._compressor.compress(delta)
            else:
                vector = model + delta
        return wire.encode(
            Kind.UPDATE,
            round_number,
            client_id=self._client_id,
            num_examples=trained.num_examples,
            body=vector if payload is None else None,
            encoding=self._encoding,
            payload=payload,
        )

    def _delta(self, trained: Trained, model: Vector) -> Vector:
        delta = np.subtract(trained.vector, model)
        if self._clip is not None:
            delta = clipped(delta, self._clip)
        if self._factor != 1.0:
            delta *= np.float32(self._factor)
        return delta
