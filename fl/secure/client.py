"""A client's side of one round of secure aggregation, without a network.

The methods are called once each, in order; a client that misses one has dropped out. A client gives away
a share of either the seed or the mask key of a peer, never of both: with both, an update would lie open.
"""

from __future__ import annotations

import secrets

from fl.errors import WireError
from fl.secure import shamir
from fl.secure.keys import KeyPair, mask_key, open_sealed, seal
from fl.secure.masks import Integers, add_mask
from fl.secure.messages import SEALED_BYTES, Advert, Roster, numbered, places

__all__ = ("SecureClient",)

_SEED_BYTES = 32


class SecureClient:
    """Keys, seed and shares of one client in one round."""

    def __init__(self, client_id: str, round_number: int) -> None:
        self._id = client_id
        self._round = round_number
        self._sealing, self._masking = KeyPair(), KeyPair()
        self._seed = secrets.token_bytes(_SEED_BYTES)
        self._roster: Roster | None = None
        self._place = -1
        # place -> (share of its mask key, share of its seed)
        self._shares: dict[int, tuple[bytes, bytes]] = {}

    def advertise(self) -> bytes:
        """ADVERTISE."""
        return self._advert.encode()

    @property
    def _advert(self) -> Advert:
        return Advert(sealing=self._sealing.public, masking=self._masking.public)

    def share(self, keys: bytes) -> bytes:
        """SHARES, in answer to KEYS. :raises WireError: we are not in it, or a key is used twice."""
        roster = Roster.decode(keys)
        if self._id not in roster.clients:
            raise WireError(f"KEYS does not name {self._id}")
        self._place = roster.clients.index(self._id)
        if roster.adverts[self._place] != self._advert:
            raise WireError(f"KEYS has other keys for {self._id} than it has made")
        if len({key for one in roster.adverts for key in (one.sealing, one.masking)}) < 2 * len(
            roster.clients
        ):
            raise WireError("KEYS has a public key twice")
        self._roster = roster
        count = len(roster.clients)
        pairs = zip(
            shamir.split(self._masking.private, threshold=roster.threshold, shares=count),
            shamir.split(self._seed, threshold=roster.threshold, shares=count),
            strict=True,
        )
        sealed = []
        for place, (of_key, of_seed) in enumerate(pairs):
            if place == self._place:
                self._shares[place] = (of_key, of_seed)
            else:
                peer = roster.adverts[place].sealing
                sealed.append(seal(self._sealing, peer, self._round, of_key + of_seed))
        return b"".join(sealed)

    def mask(self, inbox: bytes, values: Integers) -> Integers:
        """MASKED, in answer to INBOX: `values`, masked in place.

        :raises WireError: fewer peers than the threshold asks for, or shares that cannot be opened.
        """
        roster = self._known()
        received = numbered(inbox, SEALED_BYTES, "INBOX", len(roster.clients))
        if self._place in received:
            raise WireError("INBOX has shares of our own")
        self._enough(1 + len(received), "INBOX")
        add_mask(values, self._seed, 1)
        for place, sealed in received.items():
            peer = roster.adverts[place]
            text = open_sealed(self._sealing, peer.sealing, self._round, sealed)
            self._shares[place] = (text[: shamir.SHARE_BYTES], text[shamir.SHARE_BYTES :])
            sign = 1 if self._place < place else -1
            add_mask(values, mask_key(self._masking, peer.masking, self._round), sign)
        return values

    def unmask(self, survivors: bytes) -> bytes:
        """UNMASK, in answer to SURVIVORS. :raises WireError: fewer than the threshold, or not ourselves."""
        roster = self._known()
        alive = set(numbered(survivors, 0, "SURVIVORS", len(roster.clients)))
        self._enough(len(alive), "SURVIVORS")
        if self._place not in alive or not alive <= set(self._shares):
            raise WireError("SURVIVORS leaves us out, or names a client that sent no shares")
        # Once: who asked a second time with other survivors would learn both secrets of a peer.
        shares, self._shares = self._shares, {}
        return places({p: of_seed if p in alive else of_key for p, (of_key, of_seed) in shares.items()})

    def _known(self) -> Roster:
        if self._roster is None:
            raise WireError("the server skipped KEYS")
        return self._roster

    def _enough(self, count: int, what: str) -> None:
        if count < self._known().threshold:
            raise WireError(f"{what} names {count} clients, the threshold is {self._known().threshold}")
