"""The server's side of one round of secure aggregation, without a network.

Each method takes what came in one round of the protocol, by client id, and gives what goes out. A
client whose message is missing or malformed has dropped out of the round; below the threshold the
round fails. What is kept at any time is the running sum, keys and sealed shares; no update in the clear.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fl.errors import RoundError, WireError
from fl.secure import shamir
from fl.secure.keys import KeyPair, mask_key
from fl.secure.masks import Integers, add_mask
from fl.secure.messages import SEALED_BYTES, Advert, Roster, numbered, places, records
from fl.wire import Payload

__all__ = ("SecureServer",)


class SecureServer:
    """Who is still in the round, and the sum.

    :param size: how many integers an update has.
    """

    def __init__(self, *, threshold: int, size: int, round_number: int) -> None:
        self._threshold = threshold
        self._round = round_number
        self._roster = Roster(threshold=threshold, clients=(), adverts=())
        self._sealers: set[int] = set()  # places of those who sent SHARES
        self._survivors: list[int] = []
        self._total: Integers = np.zeros(size, dtype=np.uint64)

    def keys(self, adverts: Mapping[str, Payload]) -> dict[str, bytes]:
        """KEYS for everybody who sent ADVERTISE. :raises RoundError: too few."""
        found = {}
        for client, body in sorted(adverts.items()):
            try:
                found[client] = Advert.decode(body.tobytes())
            except WireError:
                continue
        self._enough(len(found), "ADVERTISE")
        self._roster = Roster(threshold=self._threshold, clients=tuple(found), adverts=tuple(found.values()))
        return dict.fromkeys(found, self._roster.encode())

    def inboxes(self, shares: Mapping[str, Payload]) -> dict[str, bytes]:
        """INBOX for everybody who sent SHARES. :raises RoundError: too few."""
        clients = self._roster.clients
        boxes: dict[int, dict[int, bytes]] = {}
        for place, client in enumerate(clients):
            body = shares.get(client)
            if body is None or body.size != (len(clients) - 1) * SEALED_BYTES:
                continue
            sealed = iter(records(body.tobytes(), SEALED_BYTES, "SHARES"))
            boxes[place] = {peer: next(sealed) for peer in range(len(clients)) if peer != place}
        self._enough(len(boxes), "SHARES")
        self._sealers = set(boxes)
        return {
            clients[place]: places({peer: boxes[peer][place] for peer in boxes if peer != place})
            for place in boxes
        }

    def survivors(self, masked: Mapping[str, Payload]) -> dict[str, bytes]:
        """SURVIVORS for everybody whose MASKED is in the sum. :raises RoundError: too few."""
        for place in sorted(self._sealers):
            body = masked.get(self._roster.clients[place])
            if body is not None and body.size == self._total.nbytes:
                self._total += body.view("<u8")
                self._survivors.append(place)
        self._enough(len(self._survivors), "MASKED")
        return dict.fromkeys((self._roster.clients[p] for p in self._survivors), places(self._survivors))

    def total(self, answers: Mapping[str, Payload]) -> Integers:
        """The sum of the survivors' integers, from their UNMASK. :raises RoundError: too few, or unusable."""
        given: dict[int, dict[int, bytes]] = {}
        for place in self._survivors:
            body = answers.get(self._roster.clients[place])
            try:
                if body is not None:
                    found = numbered(body.tobytes(), shamir.SHARE_BYTES, "UNMASK", len(self._roster.clients))
                    if set(found) == self._sealers:
                        given[place] = found
            except WireError:
                continue
        self._enough(len(given), "UNMASK")
        helpers = sorted(given)[: self._threshold]
        weights = shamir.weights_at_zero([place + 1 for place in helpers])
        for place in sorted(self._sealers):
            shares = {helper + 1: given[helper][place] for helper in helpers}
            try:
                self._take_out(place, shamir.combine(shares, weights))
            except ValueError as error:
                raise RoundError(
                    f"round {self._round}: shares of {self._roster.clients[place]} do not fit: {error}"
                ) from error
        return self._total

    @property
    def dropped(self) -> list[str]:
        """Clients that advertised and are not in the sum."""
        return [c for place, c in enumerate(self._roster.clients) if place not in self._survivors]

    def _take_out(self, place: int, secret: bytes) -> None:
        if place in self._survivors:
            add_mask(self._total, secret, -1)
            return
        own = KeyPair(secret)
        if own.public != self._roster.adverts[place].masking:
            raise ValueError("they give another key than was advertised")
        for survivor in self._survivors:
            seed = mask_key(own, self._roster.adverts[survivor].masking, self._round)
            # What the survivor added stays in the sum, as its peer never sent the opposite.
            add_mask(self._total, seed, -1 if survivor < place else 1)

    def _enough(self, count: int, what: str) -> None:
        if count < self._threshold:
            raise RoundError(
                f"round {self._round}: {count} clients answered with {what}, secure aggregation needs"
                f" {self._threshold}: nothing of their updates can be read"
            )
