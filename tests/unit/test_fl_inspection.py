"""The look at single updates: what is flagged, what is not, what is remembered."""

from __future__ import annotations

import numpy as np

from fl.aggregation.inspection import Inspector, Look

FIVE = [f"fl-client-{i}" for i in range(5)]


def updates(rng: np.random.Generator, agreement: float, size: int = 3000) -> list[np.ndarray]:
    """Five vectors of one norm whose pairs have about this cosine."""
    common = rng.normal(size=size)
    own = rng.normal(size=(5, size))
    return [np.float32(np.sqrt(agreement) * common + np.sqrt(1 - agreement) * one) for one in own]


def flags(looks: list[Look]) -> list[tuple[str, ...]]:
    return [look.unusual for look in looks]


def test_a_case_worked_by_hand() -> None:
    vectors = [np.float32(v) for v in ([1, 0], [2, 0], [0, 3], [-8, 0])]
    looks = Inspector().look(FIVE[:4], vectors)
    assert [look.norm for look in looks] == [1, 2, 3, 8]
    assert [look.norm_ratio for look in looks] == [0.4, 0.8, 1.2, 3.2]  # the median is 2.5
    assert [look.cosine for look in looks] == [0, 0, 0, -1]
    assert flags(looks) == [(), (), (), ("norm", "direction")]


def test_an_attacker_is_flagged_and_nobody_else() -> None:
    rng = np.random.default_rng(0)
    for factor, why in ((-1, "direction"), (10, "norm")):
        inspector = Inspector()
        for _ in range(30):
            sent = updates(rng, 0.3)
            sent[4] *= factor
            assert flags(inspector.look(FIVE, sent)) == [(), (), (), (), (why,)]


def test_noise_late_in_training_flags_nobody() -> None:
    rng, inspector = np.random.default_rng(1), Inspector()
    for number in range(60):
        agreement = 0.9 * 0.9**number
        assert not any(flags(inspector.look(FIVE, updates(rng, agreement)))), number


def test_one_short_update_is_forgiven_and_lasting_ones_are_not() -> None:
    rng, inspector = np.random.default_rng(2), Inspector()
    inspector.look(FIVE, updates(rng, 0.5))
    flagged = []
    for _ in range(120):
        sent = updates(rng, 0.5)
        sent[0] *= 0.01
        flagged.append(flags(inspector.look(FIVE, sent))[0])
    assert flagged[0] == ()
    assert flagged[-1] == ("norm",)


def test_what_is_not_finite_is_flagged_and_spoils_nothing() -> None:
    rng, inspector = np.random.default_rng(3), Inspector()
    sent = updates(rng, 0.5)
    sent[2][7] = np.nan
    looks = inspector.look(FIVE, sent)
    assert flags(looks) == [(), (), ("not finite",), (), ()]
    assert (looks[2].norm, looks[2].cosine) == (None, None)
    assert not any(flags(inspector.look(FIVE, updates(rng, 0.5))))


def test_clients_come_and_go() -> None:
    rng, inspector = np.random.default_rng(4), Inspector()
    inspector.look(FIVE[:3], updates(rng, 0.5)[:3])
    looks = inspector.look(["new", *FIVE[1:]], updates(rng, 0.5))
    assert len(looks) == 5
    assert not any(flags(looks))
    assert inspector.look(["alone"], [np.float32([1, 2])])[0].norm is not None


def test_one_client_has_nothing_to_be_compared_with() -> None:
    look = Inspector().look(["a"], [np.float32([3, 4])])[0]
    assert (look.norm, look.norm_ratio, look.cosine, look.unusual) == (5, 1, None, ())
