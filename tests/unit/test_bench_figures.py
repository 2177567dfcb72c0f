"""The arithmetic behind `make bench`: intervals, and what is left out of a comparison."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import replace

import pytest

from bench.clients import ClientsResult, growth_of
from bench.rounds import ARMS, Plan, RoundsResult
from bench.spread import mean_ratio, paired_ratio
from bench.throughput import Block, Throughput, orders


def _pairs(draw: random.Random, truth: float, count: int, spread: float) -> list[tuple[float, float]]:
    return [(truth * math.exp(draw.gauss(0, spread)), math.exp(draw.gauss(0, spread))) for _ in range(count)]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw, covered = random.Random(5), 0
    for _ in range(400):
        found = paired_ratio(_pairs(draw, 1.02, 14, 0.05))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1.02 <= found.high
    assert 0.92 <= covered / 400 <= 0.985


def test_a_block_in_which_something_happened_moves_the_mean_and_not_the_typical_pair() -> None:
    pairs = [*_pairs(random.Random(6), 1.0, 19, 0.01), (4.0, 1.0)]
    typical, mean = paired_ratio(pairs), mean_ratio(pairs)
    assert typical is not None
    assert mean is not None
    assert typical.ratio == pytest.approx(1.0, abs=0.01)
    assert mean.ratio > 1.06
    assert mean.high is not None
    assert typical.high is not None
    assert mean.high > 1.15 > typical.high


def test_too_few_pairs_have_no_interval_and_none_no_ratio() -> None:
    found = paired_ratio([(1.0, 1.0)] * 5)
    assert found is not None
    assert (found.low, found.high) == (None, None)
    assert "too few pairs (5)" in str(found)
    assert paired_ratio([]) is None


def test_every_cycle_has_both_arms_twice_around_the_same_middle() -> None:
    for order in orders(20, seed=3):
        places = [[i for i, probed in enumerate(order) if probed is arm] for arm in (True, False)]
        assert [sum(place) for place in places] == [3, 3]
    assert len({order[0] for order in orders(20, seed=3)}) == 2


def _block(cycle: int, probed: bool, gigabytes: float) -> Block:
    return Block(
        cycle=cycle,
        probed=probed,
        seconds=1.0,
        received_bytes=int(gigabytes * 1e9),
        packets=1000,
        cpu_s=0.99,
        retransmitted=0,
        timeouts=0,
    )


def test_a_disturbed_block_takes_its_whole_cycle_out_whichever_arm_it_was() -> None:
    found = Throughput("iperf3")
    for cycle in range(8):
        found.blocks += [
            _block(cycle, probed, 3.0 if probed else 4.0) for probed in (True, False, False, True)
        ]
    found.blocks[1] = replace(found.blocks[1], cpu_s=0.5, received_bytes=int(1e9))
    found.blocks[4] = replace(found.blocks[4], timeouts=1)
    assert found.left_out == 2
    assert found.ratio is not None
    assert found.ratio.pairs == 6
    assert found.ratio.ratio == pytest.approx(0.75)
    assert len(found.gbits(probed=False)) == 12


def test_a_plan_has_rounds_for_all_its_blocks_and_each_cycle_both_arms() -> None:
    plan = Plan(experiment="net0-sec0", warm_up=5, cycles=8, tcpdump_every=4, block=4, lost=1, cost=15)
    order = plan.order(seed=2)
    assert len(order) == 8 * 2 + 2
    for cycle in range(8):
        arms = [arm for number, arm in order if number == cycle]
        assert sorted(arms) == sorted(ARMS if cycle % 4 == 0 else ARMS[:2])
    assert plan.rounds == 5 + 18 * 5 + 1 + 15
    assert replace(plan, lost=0).rounds == 5 + 18 * 4 + 18 // 8 + 1 + 15
    assert plan.order(seed=2) == order != plan.order(seed=3)


def test_rounds_are_compared_with_the_unprobed_block_of_their_own_cycle() -> None:
    plan = Plan(experiment="net0-sec0", warm_up=0, cycles=3, tcpdump_every=1, block=2, lost=1, cost=0)
    found = RoundsResult(plan)
    found.blocks = {(0, "unprobed"): [1.0, 3.0], (0, "probed"): [3.0, 3.0], (1, "probed"): [9.0, 9.0]}
    found.retransmitted = {(0, "unprobed"): 3, (0, "probed"): 0, (1, "probed"): 8}
    assert found.pairs("probed") == [(3.0, 2.0)]
    assert found.pairs("tcpdump") == []
    assert found.sent_again("probed") == 2.0
    assert found.sent_again("tcpdump") == 0.0


def sized(clients: int, power: float) -> ClientsResult:
    """Something of a fixed size, and what clients add to it."""
    amount = round(1e6 * clients**power)
    return ClientsResult(
        clients=clients,
        round_s=1.0,
        residual_share=0.0,
        events=amount,
        lost=0,
        memory_bytes=1,
        run_bytes=amount,
        report_bytes=30_000_000 + amount,
        analysis_s=0.3 + amount / 1e9,
    )


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_growth_is_told_as_a_power_of_the_number_of_clients(power: float) -> None:
    found = growth_of([sized(clients, power) for clients in (5, 20, 60, 200)])
    assert found == pytest.approx(dict.fromkeys(found, power), abs=0.01)


def test_what_does_not_grow_has_no_power() -> None:
    slow_start = dataclasses.replace(sized(5, 1.0), analysis_s=9.0)
    found = growth_of([slow_start, *(sized(clients, 1.0) for clients in (20, 60, 200))])
    assert (found["analysis_s"], found["events"]) == (0.0, pytest.approx(1.0, abs=0.01))
