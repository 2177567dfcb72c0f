"""The server's side of secure aggregation on the wire: one round, as four exchanges of the rendezvous.

Each exchange is logged as `exchange_start` and `exchange_end` (with the kind of message that it waits for),
so that a round can be taken apart at the instants at which the server had heard everybody.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fl import wire
from fl.config import ServerConfig
from fl.errors import RoundError
from fl.events import EventLog
from fl.rendezvous import Rendezvous
from fl.secure import quantisation
from fl.secure.server import SecureServer
from fl.wire import Encoding, Kind, Message, Payload

__all__ = ("SecureCollection",)


class SecureCollection:
    """Collects sums instead of updates.

    :param size: the model's number of values.
    """

    def __init__(self, config: ServerConfig, rendezvous: Rendezvous, size: int, log: EventLog) -> None:
        self._rendezvous = rendezvous
        self._size = size
        self._log = log
        self._clients = config.clients
        self._threshold = max(config.options.threshold(config.clients), config.min_clients)
        self._phase_s: float = config.options.of("secure_phase_s")

    def collect(
        self, number: int, model: bytes, deadline_s: float
    ) -> tuple[npt.NDArray[np.float64], int, int]:
        """The weighted sum of the updates, the weights' sum, and how many clients are in it.

        :param deadline_s: for the masked updates, on `time.monotonic`; the other exchanges have their own.
        :raises RoundError: fewer clients than the threshold in one of the exchanges.
        """
        secure = SecureServer(threshold=self._threshold, size=self._size + 1, round_number=number)
        self._log.emit("exchange_start", number, kind=Kind.ADVERTISE.name)
        self._rendezvous.open_round(number, model, Kind.ADVERTISE)
        adverts = self._wait(Kind.ADVERTISE, number, deadline_s)
        shares = self._exchange(Kind.KEYS, secure.keys(adverts), Kind.SHARES, number, deadline_s)
        masked = self._exchange(Kind.INBOX, secure.inboxes(shares), Kind.MASKED, number, deadline_s)
        survivors = secure.survivors(masked)
        self._log.emit("secure_sum", number, clients=len(survivors), dropped=secure.dropped)
        del masked  # 9.6 MB a client, which the sum holds
        answers = self._exchange(Kind.SURVIVORS, survivors, Kind.UNMASK, number, deadline_s)
        summed, weight = quantisation.sums_of(secure.total(answers))
        if weight < 1:
            raise RoundError(f"round {number}: the clients' numbers of examples sum up to {weight}")
        return summed, weight, len(survivors)

    def _exchange(
        self, kind: Kind, bodies: Mapping[str, bytes], accepts: Kind, number: int, deadline_s: float
    ) -> dict[str, Payload]:
        self._log.emit("exchange_start", number, kind=accepts.name)
        answers = {
            client: wire.encode(
                kind, number, encoding=Encoding.OPAQUE, payload=np.frombuffer(body, dtype=np.uint8)
            )
            for client, body in bodies.items()
        }
        self._rendezvous.open_exchange(answers, accepts)
        return self._wait(accepts, number, deadline_s)

    def _wait(self, accepts: Kind, number: int, deadline_s: float) -> dict[str, Payload]:
        phase_s = time.monotonic() + self._phase_s
        if accepts is Kind.UNMASK:
            deadline_s = phase_s  # who died training has used up the round's
        elif accepts is not Kind.MASKED:
            deadline_s = min(deadline_s, phase_s)
        self._rendezvous.wait_for_updates(deadline_s)
        last = accepts is Kind.UNMASK
        came: list[Message] = self._rendezvous.close_round() if last else self._rendezvous.close_exchange()
        self._log.emit("exchange_end", number, kind=accepts.name, clients=len(came))
        return {message.client_id: message.payload for message in came}
