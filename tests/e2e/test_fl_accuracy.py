"""What the options do to the model: real training on the digits, in one process (`tests.fl_simulation`)."""

from __future__ import annotations

from functools import lru_cache

import pytest

from fl.options import FlOptions
from tests.fl_simulation import Outcome, simulate

pytestmark = pytest.mark.long

ROUNDS = 10


@lru_cache
def plain() -> Outcome:
    return simulate(FlOptions(inspect=True), rounds=ROUNDS)


def test_honest_clients_are_not_flagged() -> None:
    assert plain().accuracy > 0.95
    flags = [flag for rounds in plain().unusual().values() for flag in rounds]
    assert len(flags) == 5 * ROUNDS
    assert sum(flags) <= 0.01 * len(flags)


@pytest.mark.parametrize("name", ["fp16", "int8", "top-k"])
def test_compression_costs_less_than_a_point(name: str) -> None:
    assert simulate(FlOptions(compression=name), rounds=ROUNDS).accuracy > plain().accuracy - 0.01


@pytest.mark.parametrize("attack", ["sign-flip", "scale"])
@pytest.mark.parametrize("aggregation", ["mean", "median", "trimmed-mean", "krum"])
def test_an_attacker_among_five_is_flagged_and_a_robust_aggregate_holds(
    attack: str, aggregation: str
) -> None:
    outcome = simulate(FlOptions(attack=attack, aggregation=aggregation), rounds=ROUNDS)
    print(f"{attack} against {aggregation}: accuracy {outcome.accuracy:.3f}, without {plain().accuracy:.3f}")
    flags = outcome.unusual()
    attacker = flags.pop("fl-client-4")
    assert sum(attacker) >= 0.95 * ROUNDS
    assert sum(flag for rounds in flags.values() for flag in rounds) <= 0.01 * 4 * ROUNDS
    if aggregation != "mean":
        assert outcome.accuracy > 0.9
