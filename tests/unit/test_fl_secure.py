"""Secure aggregation: sums that are exact to the bit, drop-outs in every round, masks that hide."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import sympy
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fl.errors import RoundError, WireError
from fl.secure import messages, quantisation, shamir
from fl.secure.client import SecureClient
from fl.secure.keys import KeyPair, mask_key, open_sealed, seal
from fl.secure.masks import add_mask
from fl.secure.messages import Roster
from fl.secure.quantisation import STEP, quantised
from fl.secure.server import SecureServer

SIZE = 40_000  # more than one slice of the key stream


def payloads(bodies: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    return {client: np.frombuffer(body, dtype=np.uint8) for client, body in bodies.items()}


def vectors(clients: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"c{index}": quantised(
            rng.normal(scale=0.05, size=SIZE - 1).astype(np.float32), 100 + index, clients=clients
        )
        for index in range(clients)
    }


class Round:
    """One round of the protocol; `stop` names who falls silent before which message."""

    def __init__(self, clients: int, threshold: int, stop: Mapping[str, str] | None = None) -> None:
        self.values = vectors(clients)
        self.clients = {name: SecureClient(name, 7) for name in self.values}
        self.server = SecureServer(threshold=threshold, size=SIZE, round_number=7)
        self.stop = dict(stop or {})
        self.masked: dict[str, np.ndarray] = {}

    def speaking(self, message: str) -> list[str]:
        order = ("ADVERTISE", "SHARES", "MASKED", "UNMASK")
        return [
            name
            for name in self.clients
            if name not in self.stop or order.index(self.stop[name]) > order.index(message)
        ]

    def run(self) -> np.ndarray:
        keys = self.server.keys(
            payloads({c: self.clients[c].advertise() for c in self.speaking("ADVERTISE")})
        )
        boxes = self.server.inboxes(
            payloads({c: self.clients[c].share(keys[c]) for c in self.speaking("SHARES")})
        )
        self.masked = {
            c: self.clients[c].mask(boxes[c], self.values[c].copy()) for c in self.speaking("MASKED")
        }
        alive = self.server.survivors({c: m.view(np.uint8) for c, m in self.masked.items()})
        return self.server.total(
            payloads({c: self.clients[c].unmask(alive[c]) for c in self.speaking("UNMASK")})
        )

    def plain(self, names: list[str]) -> np.ndarray:
        total = np.zeros(SIZE, dtype=np.uint64)
        for name in names:
            total += self.values[name]
        return total


def test_the_sum_is_the_plain_sum_to_the_bit() -> None:
    one = Round(5, 4)
    assert np.array_equal(one.run(), one.plain(list(one.clients)))
    assert one.server.dropped == []


@pytest.mark.parametrize("message", ["ADVERTISE", "SHARES", "MASKED", "UNMASK"])
@pytest.mark.parametrize("who", ["c0", "c2", "c4"])
def test_one_drops_out_before(message: str, who: str) -> None:
    one = Round(5, 3, {who: message})
    total = one.run()
    # Who has sent the masked update is in the sum, whether or not it answers afterwards.
    survivors = list(one.clients) if message == "UNMASK" else [c for c in one.clients if c != who]
    assert np.array_equal(total, one.plain(survivors))
    assert one.server.dropped == ([who] if message in ("SHARES", "MASKED") else [])


def test_drop_outs_in_every_round_at_once() -> None:
    one = Round(9, 5, {"c1": "ADVERTISE", "c3": "SHARES", "c4": "MASKED", "c8": "UNMASK"})
    assert np.array_equal(one.run(), one.plain(["c0", "c2", "c5", "c6", "c7", "c8"]))
    assert one.server.dropped == ["c3", "c4"]


@pytest.mark.parametrize("message", ["ADVERTISE", "SHARES", "MASKED", "UNMASK"])
def test_below_the_threshold_the_round_fails_and_says_so(message: str) -> None:
    one = Round(5, 4, {"c0": message, "c1": message})
    with pytest.raises(
        RoundError, match=f"round 7: 3 clients answered with {message}, secure aggregation needs 4"
    ):
        one.run()


def test_who_talks_nonsense_has_dropped_out() -> None:
    one = Round(4, 2)
    keys = one.server.keys(payloads({c: s.advertise() for c, s in one.clients.items()} | {"x": b"short"}))
    assert sorted(keys) == list(one.clients)
    shares = {c: s.share(keys[c]) for c, s in one.clients.items()}
    boxes = one.server.inboxes(payloads(shares | {"c3": shares["c3"][:-1]}))
    masked = {c: one.clients[c].mask(boxes[c], one.values[c].copy()) for c in boxes}
    alive = one.server.survivors(
        {c: m.view(np.uint8) for c, m in (masked | {"c2": masked["c2"][1:]}).items()}
    )
    answers = payloads({c: one.clients[c].unmask(alive[c]) for c in alive})
    assert np.array_equal(one.server.total(answers), one.plain(["c0", "c1"]))


def test_one_masked_update_is_uniform() -> None:
    one = Round(5, 3)
    one.values = {name: np.zeros(SIZE, dtype=np.uint64) for name in one.values}
    one.run()
    for words in one.masked.values():
        assert stats.kstest(words / 2.0**64, "uniform").pvalue > 1e-4
        counts = np.bincount(words.view(np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4
        bits = np.unpackbits(words.view(np.uint8))
        assert abs(bits.mean() - 0.5) < 5 * 0.5 / len(bits) ** 0.5
    first, second = itertools.islice(one.masked.values(), 2)
    assert abs(np.corrcoef(first / 2.0**64, second / 2.0**64)[0, 1]) < 5 / SIZE**0.5


def test_two_rounds_have_other_masks() -> None:
    first, second = Round(3, 2), Round(3, 2)
    first.run(), second.run()
    assert not np.array_equal(first.masked["c0"], second.masked["c0"])


def test_a_client_gives_away_one_kind_of_share_and_answers_once() -> None:
    one = Round(3, 2)
    keys = one.server.keys(payloads({c: s.advertise() for c, s in one.clients.items()}))
    boxes = one.server.inboxes(payloads({c: s.share(keys[c]) for c, s in one.clients.items()}))
    for c, client in one.clients.items():
        client.mask(boxes[c], one.values[c])
    one.clients["c0"].unmask(messages.places([0, 1]))
    with pytest.raises(WireError):
        one.clients["c0"].unmask(messages.places([0, 2]))


@pytest.mark.parametrize(
    ("survivors", "says"),
    [
        (messages.places([0]), "names 1 clients, the threshold is 2"),
        (messages.places([1, 2]), "leaves us out"),
        (messages.places([0, 0]), "names it twice"),
        (messages.places([0, 9]), "place 9 of 3"),
        (b"abc", "expected a multiple of 4"),
    ],
)
def test_survivors_that_a_client_refuses(survivors: bytes, says: str) -> None:
    one = Round(3, 2)
    keys = one.server.keys(payloads({c: s.advertise() for c, s in one.clients.items()}))
    boxes = one.server.inboxes(payloads({c: s.share(keys[c]) for c, s in one.clients.items()}))
    one.clients["c0"].mask(boxes["c0"], one.values["c0"])
    with pytest.raises(WireError, match=says):
        one.clients["c0"].unmask(survivors)


def test_keys_that_a_client_refuses() -> None:
    names = ("a", "b", "c")
    clients = {name: SecureClient(name, 1) for name in names}
    adverts = {name: messages.Advert.decode(client.advertise()) for name, client in clients.items()}

    def refused(says: str, threshold: int = 2, **changed: str) -> None:
        used = {name: adverts[changed.get(name, name)] for name in names}
        roster = Roster(threshold=threshold, clients=names, adverts=tuple(used.values()))
        with pytest.raises(WireError, match=says):
            clients["a"].share(roster.encode())

    refused("has other keys for a", a="b")
    refused("a public key twice", b="c")
    refused("impossible threshold", threshold=1)
    refused("impossible threshold", threshold=4)
    with pytest.raises(WireError, match="skipped KEYS"):
        clients["a"].mask(b"", np.zeros(1, dtype=np.uint64))


def test_wire_bytes_are_what_is_sent() -> None:
    one, predicted = Round(5, 3), messages.wire_bytes(clients=5, size=SIZE - 1)
    adverts = {c: s.advertise() for c, s in one.clients.items()}
    keys = one.server.keys(payloads(adverts))
    shares = {c: s.share(keys[c]) for c, s in one.clients.items()}
    boxes = one.server.inboxes(payloads(shares))
    masked = {c: one.clients[c].mask(boxes[c], one.values[c]).tobytes() for c in boxes}
    alive = one.server.survivors(payloads(masked))
    answers = {c: one.clients[c].unmask(alive[c]) for c in alive}
    for name, bodies in zip(predicted, (adverts, keys, shares, boxes, masked, alive, answers), strict=True):
        assert {88 + len(body) for body in bodies.values()} == {predicted[name]}, name


# what it is built of


def test_the_field_is_one() -> None:
    assert sympy.isprime(shamir.PRIME)
    assert sympy.prevprime(shamir.PRIME) < 2**256


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=32, max_size=32), st.integers(2, 6), st.data())
def test_any_threshold_of_shares_gives_the_secret_back(
    secret: bytes, count: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, count))
    shares = dict(enumerate(shamir.split(secret, threshold=threshold, shares=count), 1))
    for chosen in itertools.combinations(shares, threshold):
        assert shamir.combine({x: shares[x] for x in chosen}) == secret


def test_fewer_shares_say_nothing() -> None:
    # With one share of two, every secret is as possible as any other: there is a second share that gives it.
    secret = bytes(range(32))
    share = shamir.split(secret, threshold=2, shares=3)[0]
    for other in (bytes(32), b"\xff" * 32):
        slope = (int.from_bytes(share, "big") - int.from_bytes(other, "big")) % shamir.PRIME
        second = (int.from_bytes(share, "big") + slope) % shamir.PRIME
        assert shamir.combine({1: share, 2: second.to_bytes(33, "big")}) == other
    with pytest.raises(ValueError, match="4 of 3 shares"):
        shamir.split(secret, threshold=4, shares=3)


def test_a_mask_is_chacha20_and_comes_off_again() -> None:
    values = np.arange(SIZE, dtype=np.uint64)
    seed = bytes(range(32))
    masked = values.copy()
    add_mask(masked, seed, 1)
    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(8 * SIZE))
    assert np.array_equal(masked, values + np.frombuffer(stream, dtype="<u8"))
    add_mask(masked, seed, -1)
    assert np.array_equal(masked, values)


def test_two_clients_agree_on_a_mask_and_each_round_on_another() -> None:
    a, b = KeyPair(), KeyPair()
    assert mask_key(a, b.public, 3) == mask_key(b, a.public, 3) == mask_key(KeyPair(a.private), b.public, 3)
    assert mask_key(a, b.public, 4) != mask_key(a, b.public, 3)
    with pytest.raises(WireError, match="unusable"):
        mask_key(a, bytes(32), 3)


def test_sealed_shares_are_for_one_reader() -> None:
    a, b, c = KeyPair(), KeyPair(), KeyPair()
    sealed = seal(a, b.public, 1, b"text")
    assert open_sealed(b, a.public, 1, sealed) == b"text"
    for reader, sender, number, text in (
        (c, a, 1, sealed),
        (b, c, 1, sealed),
        (b, a, 2, sealed),
        (b, a, 1, sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (a, b, 1, sealed),
    ):
        with pytest.raises(WireError, match="cannot be opened"):
            open_sealed(reader, sender.public, number, text)


def test_quantised_sums_give_the_weighted_mean() -> None:
    rng = np.random.default_rng(0)
    deltas = [rng.normal(scale=0.1, size=1000).astype(np.float32) for _ in range(3)]
    weights = [287, 288, 1]
    total = np.zeros(1001, dtype=np.uint64)
    for delta, weight in zip(deltas, weights, strict=True):
        total += quantised(delta, weight, clients=3)
    expected = np.average(np.stack(deltas).astype(np.float64), axis=0, weights=weights)
    assert np.abs(quantisation.mean_of(total) - expected).max() < STEP
    assert quantisation.sums_of(total)[1] == sum(weights)


def test_quantising_what_is_out_of_range() -> None:
    values = quantised(np.float32([np.nan, np.inf, -np.inf, 0.5]), 2, clients=4).view(np.int64)
    assert values.tolist() == [0, 2**60, -(2**60), 2**24, 2]
    with pytest.raises(ValueError, match="weights' sum is 0"):
        quantisation.mean_of(np.zeros(3, dtype=np.uint64))
