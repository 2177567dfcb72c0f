"""A client's side of secure aggregation on the wire: which message answers which."""

from __future__ import annotations

import numpy as np

from fl import wire
from fl.errors import WireError
from fl.secure.client import SecureClient
from fl.secure.quantisation import quantised
from fl.wire import Encoding, Kind, Message, Vector

__all__ = ("SecureTurns",)


class SecureTurns:
    """Begins anew with each round's MODEL, whatever has become of the round before."""

    def __init__(self, client_id: str, clients: int) -> None:
        self._client_id = client_id
        self._clients = clients
        self._round = 0
        self._secure = SecureClient(client_id, 0)

    def answer(self, message: Message) -> bytes:
        """What answers MODEL, KEYS or SURVIVORS, whole. :raises WireError: it is none of them, or refused."""
        if message.kind is Kind.MODEL:
            self._round = message.round
            self._secure = SecureClient(self._client_id, message.round)
            return self._encode(Kind.ADVERTISE, self._secure.advertise())
        body = self._body(message)
        if message.kind is Kind.KEYS:
            return self._encode(Kind.SHARES, self._secure.share(body))
        if message.kind is Kind.SURVIVORS:
            return self._encode(Kind.UNMASK, self._secure.unmask(body))
        raise WireError(f"the server sent {message.kind.name} in the middle of a round")

    def masked(self, inbox: Message, delta: Vector, weight: int) -> bytes:
        """What answers INBOX once training is done. :raises WireError: refused."""
        values = quantised(delta, weight, clients=self._clients)
        self._secure.mask(self._body(inbox), values)
        return wire.encode(
            Kind.MASKED,
            self._round,
            client_id=self._client_id,
            num_examples=weight,
            encoding=Encoding.OPAQUE,
            payload=values.view(np.uint8),
        )

    def _body(self, message: Message) -> bytes:
        if message.round != self._round:
            raise WireError(f"the server sent {message.kind.name} of round {message.round} in {self._round}")
        return message.payload.tobytes()

    def _encode(self, kind: Kind, body: bytes) -> bytes:
        return wire.encode(
            kind,
            self._round,
            client_id=self._client_id,
            encoding=Encoding.OPAQUE,
            payload=np.frombuffer(body, dtype=np.uint8),
        )
