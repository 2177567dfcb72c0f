"""The delay line: its draws, its order of release and its counters."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztprobe.emulation.delay_line.config import Config
from ztprobe.emulation.delay_line.histogram import ErrorHistogram
from ztprobe.emulation.delay_line.impairment import Condition, Impairments
from ztprobe.emulation.delay_line.nfqueue import ACCEPT, DROP
from ztprobe.emulation.delay_line.process import DelayLine
from ztprobe.profile.model import Profile

MS = 1_000_000


class Verdicts:
    """What a queue socket was told, in order."""

    def __init__(self) -> None:
        self.verdict_errors = 0
        self.given: list[tuple[int, int, int]] = []
        self.up_to: list[tuple[int, int]] = []

    def verdict(self, packets: Iterable[tuple[int, int]], verdict: int) -> None:
        self.given += [(queue, packet, verdict) for queue, packet in packets]

    def accept_up_to(self, packets: Iterable[tuple[int, int]]) -> None:
        self.up_to += list(packets)


def delay_line(pods: tuple[str, ...] = ("a", "b"), **condition: Any) -> tuple[DelayLine, Verdicts]:
    config = Config(
        netns="",
        pods={pod: 100 + index for index, pod in enumerate(pods)},
        condition=Condition(**{"delay_ns": 20 * MS} | condition),
        whole_gso=False,
        max_packets=1000,
        seed=3,
        stats_path="",
        parent_pid=1,
    )
    verdicts = Verdicts()
    return DelayLine(config, verdicts), verdicts


def draws_of(count: int, **condition: Any) -> list[int]:
    draws = Impairments(Condition(**{"delay_ns": 20 * MS} | condition), pods=1, seed=3)
    return [draws.delay_ns() for _ in range(count)]


def start_ns(line: DelayLine) -> int:
    return line._zero_ns


def test_a_packet_leaves_when_due_and_not_before() -> None:
    line, verdicts = delay_line()
    now = start_ns(line) + MS
    line.take([(100, 1, 0)], now, 0)
    assert line.next_due_ns == pytest.approx(now + 20 * MS, abs=1000)
    assert not line.release(now + 20 * MS - 2000)
    assert verdicts.up_to == []
    line.release(now + 20 * MS + 1000)
    assert verdicts.up_to == [(100, 1)]
    assert line.pending == 0


def test_delay_runs_from_the_kernels_stamp_unless_it_is_implausible() -> None:
    line, _ = delay_line()
    now = start_ns(line) + 50 * MS
    wall_ahead = 10**18
    for stamp, expected in [
        (now - 3 * MS, now - 3 * MS),
        (now + 5 * MS, now),  # from the future
        (now - 9_000 * MS, now),  # a stepped clock
    ]:
        line.take([(100, 1, stamp + wall_ahead)], now, -wall_ahead)
        assert line.next_due_ns == pytest.approx(expected + 20 * MS, abs=1000)
        line.flush()


def test_in_order_release_never_leaves_a_packet_behind() -> None:
    # Two CPUs stamped packets 7 and 8 out of order: the later id is due first.
    line, verdicts = delay_line()
    now = start_ns(line) + 50 * MS
    line.take([(100, 7, now - 10_000), (100, 8, now - 20_000), (101, 1, now - 15_000)], now, 0)
    line.release(now + 30 * MS)
    assert sorted(verdicts.up_to) == [(100, 8), (101, 1)]


def test_a_change_lets_held_packets_keep_their_time_and_new_ones_overtake() -> None:
    line, verdicts = delay_line(delay_ns=80 * MS)
    now = start_ns(line) + MS
    line.take([(100, 1, 0), (100, 2, 0)], now, 0)
    line.change(Condition(delay_ns=10 * MS))
    line.take([(100, 3, 0)], now, 0)
    line.release(now + 20 * MS)
    # Not "up to 3", which would let 1 and 2 go 60 ms early.
    assert (verdicts.given, verdicts.up_to) == ([(100, 3, ACCEPT)], [])
    line.release(now + 79 * MS)
    assert line.pending == 2
    line.release(now + 81 * MS)
    line.take([(100, 4, 0)], now + 81 * MS, 0)
    line.release(now + 92 * MS)
    assert line.pending == 0
    assert verdicts.up_to == [(100, 2), (100, 4)]  # nothing of before is held any more


@given(
    changes=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10), st.integers(1, 8)), min_size=1),
    seed=st.integers(0, 99),
)
def test_through_any_changes_every_packet_leaves_once_and_not_before_its_time(
    changes: list[tuple[int, int, int]], seed: int
) -> None:
    line, verdicts = delay_line()
    now, packet = start_ns(line) + MS, 0
    due: dict[int, int] = {}
    gone: dict[int, int] = {}
    chance = random.Random(seed)

    def release() -> None:
        line.release(now)
        up_to = max((number for _, number in verdicts.up_to), default=0)
        for number in [n for _, n, _ in verdicts.given] + [n for n in due if n <= up_to]:
            gone.setdefault(number, now)
        assert len(verdicts.given) == len({n for _, n, _ in verdicts.given})

    for delay_ms, jitter_ms, count in changes:
        condition = Condition(delay_ns=delay_ms * MS, jitter_ns=jitter_ms * MS, distribution="uniform")
        line.change(condition)
        for _ in range(count):
            packet += 1
            line.take([(100, packet, 0)], now, 0)
            due[packet] = now + max(0, delay_ms - jitter_ms) * MS - 1000  # kept in microseconds
        now += chance.randrange(60) * MS
        release()
    now += 100 * MS
    release()
    assert sorted(gone) == sorted(due)
    assert all(gone[number] >= due[number] for number in due)


def test_packet_ids_survive_the_modulus() -> None:
    line, verdicts = delay_line(jitter_ns=MS, distribution="uniform")
    now = start_ns(line) + MS
    ids = [2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 5]
    line.take([(101, packet, 0) for packet in ids[:3]], now, 0)
    line.flush()
    line.take([(101, ids[3], 0)], now, 0)
    line.flush()
    assert sorted(packet for _, packet, verdict in verdicts.given if verdict == ACCEPT) == ids


def test_normal_draws_are_independent_seeded_and_never_negative() -> None:
    draws = draws_of(20_000, delay_ns=80 * MS, jitter_ns=20 * MS, distribution="normal")
    assert statistics.fmean(draws) / MS == pytest.approx(80, abs=0.6)
    assert statistics.stdev(draws) / MS == pytest.approx(20, rel=0.025)
    assert abs(statistics.correlation(draws[:-1], draws[1:])) < 0.03
    assert draws_of(100, delay_ns=80 * MS, jitter_ns=20 * MS, distribution="normal") == draws[:100]
    assert min(draws_of(1000, delay_ns=MS, jitter_ns=MS, distribution="normal")) == 0


def test_loss_is_a_drop_verdict_at_once_and_counted_per_pod() -> None:
    line, verdicts = delay_line(loss_probability=0.1)
    now = start_ns(line) + MS
    for packet in range(1, 5004):
        line.take([(100, packet, 0)], now, 0)
    dropped = [packet for _, packet, verdict in verdicts.given if verdict == DROP]
    assert line.dropped == [len(dropped), 0]
    assert line.packets == [5003, 0]
    assert line.pending == 5003 - len(dropped)
    assert len(dropped) == pytest.approx(500, abs=110)  # 5 standard deviations


def test_error_histogram_tells_quantiles() -> None:
    histogram = ErrorHistogram()
    assert histogram.quantile_us(0.5) is None
    histogram.add([3] * 90 + [-205] * 9 + [10**9])
    assert histogram.quantile_us(0.5) == 5
    assert histogram.quantile_us(0.95) == 205
    assert histogram.max_us == 10**9


def test_the_delay_line_loses_in_bursts() -> None:
    line, verdicts = delay_line(loss_states=[0.01, 0.1, 1.0, 0.0], pods=("a",))
    line.take([(100, number, 0) for number in range(1, 50_001)], start_ns(line) + MS, 0)
    lost = sorted(packet for _, packet, _ in verdicts.given)
    assert len(lost) / 50_000 == pytest.approx(0.01 / 0.11, rel=0.15)
    bursts = 1 + sum(b - a > 1 for a, b in itertools.pairwise(lost))
    assert len(lost) / bursts == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "pareto"])
def test_correlated_draws_keep_their_distribution(distribution: str) -> None:
    profile = Profile(name="x", delay_ms=50, jitter_ms=10, distribution=distribution)
    samples = list(profile.delay_samples) if distribution == "pareto" else []
    condition = Condition(
        delay_ns=50 * MS, jitter_ns=10 * MS, distribution=distribution, delay_correlation=0.8, samples=samples
    )
    correlated = Impairments(condition, pods=1, seed=3)
    draws = [correlated.delay_ns() / MS for _ in range(40_000)]
    assert statistics.fmean(draws) == pytest.approx(profile.mean_ms, abs=0.6)
    assert statistics.pstdev(draws) == pytest.approx(profile.sd_ms, rel=0.06)
    assert statistics.correlation(draws[:-1], draws[1:]) == pytest.approx(0.78, abs=0.07)


def test_some_packets_go_ahead() -> None:
    draws = draws_of(10_000, reorder_probability=0.25)
    assert sum(draw == 0 for draw in draws) == pytest.approx(2500, abs=200)
    assert set(draws) == {0, 20 * MS}
