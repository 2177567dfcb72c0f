"""What emulation computes: the delay line's draws and order, netem's fields, and the judgement on probes."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztprobe.conformance.judgement import Measured, Rate, direction, shape_distance
from ztprobe.emulation.delay_line.config import Config
from ztprobe.emulation.delay_line.histogram import ErrorHistogram
from ztprobe.emulation.delay_line.impairment import Condition, Impairments
from ztprobe.emulation.delay_line.nfqueue import ACCEPT, DROP
from ztprobe.emulation.delay_line.process import DelayLine
from ztprobe.emulation.netem import netem_change_options, netem_options, netem_summary
from ztprobe.emulation.tbf import tbf_options, tbf_summary
from ztprobe.profile.model import GilbertElliott, Profile, load_profile

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


def test_a_normal_distribution_is_iproute2s() -> None:
    attributes = dict(netem_options(load_profile("net2"))["attrs"])
    ours = struct.unpack("=4096h", attributes["TCA_NETEM_DELAY_DIST"])
    assert statistics.fmean(ours) == pytest.approx(0, abs=10)
    assert statistics.pstdev(ours) == pytest.approx(8192, rel=0.001)
    installed = next(Path("/usr/lib").glob("**/tc/normal.dist"), None)
    assert installed is not None, "normal.dist is missing: make setup should have installed it (iproute2)"
    lines = [line for line in installed.read_text().splitlines() if not line.startswith("#")]
    theirs = [int(word) for line in lines for word in line.split()]
    # normal.c steps by 0.00005 sigma, so the last digit differs now and then.
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1


def test_netem_options_carry_full_precision() -> None:
    options = netem_options(load_profile("net2"))
    attributes = dict(options["attrs"])
    assert attributes["TCA_NETEM_LATENCY64"] == 80 * MS
    assert attributes["TCA_NETEM_JITTER64"] == 20 * MS
    assert len(attributes["TCA_NETEM_DELAY_DIST"]) == 8192
    assert netem_options(load_profile("net3"))["loss"] == round(0.005 * (2**32 - 1))
    rate = dict(netem_options(load_profile("net2a"))["attrs"])["TCA_NETEM_RATE"]
    assert rate["rate"] == 2_500_000
    uniform = Profile(name="x", delay_ms=5, jitter_ms=1, distribution="uniform")
    assert "TCA_NETEM_DELAY_DIST" not in dict(netem_options(uniform)["attrs"])


def probes(
    mean_ms: float, sd_ms: float, *, lost: int = 0, sent: int = 500, uniform: bool = False
) -> Measured:
    """Both directions to five clients."""
    draws = random.Random(1)
    directions = []
    for client in range(5):
        for a, b in ((f"c{client}", "server"), ("server", f"c{client}")):
            half = sd_ms * math.sqrt(3)
            delays = [
                draws.uniform(mean_ms - half, mean_ms + half) if uniform else draws.gauss(mean_ms, sd_ms)
                for _ in range(sent - lost)
            ]
            directions.append(direction(a, b, sent, delays))
    return Measured(directions=tuple(directions))


@pytest.mark.parametrize(
    ("profile", "measured"),
    [
        ("net0", probes(0.03, 0.01)),
        ("net1", probes(20.1, 5)),
        ("net2", probes(80.2, 20.3)),
        ("net3", probes(0.1, 0.05, lost=2)),
        ("net4", probes(150.1, 0.1)),
        ("net4a", probes(50.1, 10, lost=9)),
    ],
)
def test_a_healthy_measurement_has_no_problems(profile: str, measured: Measured) -> None:
    assert measured.problems(load_profile(profile)) == []


def test_healthy_pods_do_not_fail_by_chance() -> None:
    profile, draws = load_profile("net4a"), random.Random(5)
    for _ in range(30):
        directions = [
            direction("a", "b", 500, [draws.gauss(50, 10) for _ in range(500) if draws.random() > 0.01])
            for _ in range(10)
        ]
        assert Measured(directions=tuple(directions)).problems(profile) == []


@pytest.mark.parametrize(
    ("profile", "measured", "words"),
    [
        ("net2", probes(0.05, 0.02), "the profile is not on the path"),
        ("net1", probes(40, 7), "applied twice, or at both ends"),
        ("net1", probes(15, 5), "less than asked for"),
        ("net4", probes(157, 0.1), "too busy"),
        ("net2", probes(80, 20 / math.sqrt(3), uniform=True), "looks uniform"),
        ("net4", probes(150, 20), "where no jitter is asked for"),
        ("net3", probes(0.1, 0.05, lost=50), r"50 of 500 probes lost \(10.00 %\) instead of 0.5 %"),
        ("net4a", probes(50, 10, lost=500), "none of 500 probes arrived"),
        ("net4a", probes(50, 10, sent=5000), "0 of 5000 probes lost"),
    ],
)
def test_a_profile_that_is_not_in_force_is_named(profile: str, measured: Measured, words: str) -> None:
    import re

    problems = measured.problems(load_profile(profile))
    assert any(re.search(words, problem) for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


def test_rate_is_judged_where_it_could_be_told() -> None:
    quiet = probes(0.02, 0.01).directions
    for goodput_mbit, wrong in ((10.15, False), (9.5, True), (None, False), (940.0, True)):
        rates = (Rate(sender="server", goodput_mbit=goodput_mbit, frames=400),)
        problems = Measured(directions=quiet, rates=rates).problems(load_profile("net5"))
        assert bool(problems) == wrong


def test_overall_values_use_the_names_that_are_asked_for() -> None:
    measured = probes(80, 20)
    assert set(measured.as_dict()) == {"delay_ms", "jitter_ms", "loss_pct", "rate_mbit"}
    assert measured.as_dict()["delay_ms"] == pytest.approx(80, abs=2)
    assert measured.as_dict()["rate_mbit"] is None
    assert len(measured.details()["directions"]) == 10
    assert "5000 probes" in measured.summary()


def test_netem_gets_every_model() -> None:
    bursts = GilbertElliott(good_to_bad_pct=1, bad_to_good_pct=10, loss_in_bad_pct=75)
    profile = Profile(
        name="x", delay_ms=20, jitter_ms=5, distribution="pareto", loss_gilbert_elliott=bursts,
        duplicate_pct=2, corrupt_pct=3, reorder_pct=4,
    )  # fmt: skip
    options = netem_options(profile)
    attributes = dict(options["attrs"])
    assert (options["loss"], options["gap"]) == (0, 1)
    assert options["duplicate"] == round(0.02 * (2**32 - 1))
    length, kind, *model = struct.unpack("=HH4I", attributes["TCA_NETEM_LOSS"])
    assert (length, kind) == (20, 2)
    assert [value / (2**32 - 1) for value in model] == pytest.approx([0.01, 0.10, 0.25, 0])
    assert len(attributes["TCA_NETEM_DELAY_DIST"]) == 8192
    assert struct.unpack("=II", attributes["TCA_NETEM_REORDER"]) == (round(0.04 * (2**32 - 1)), 0)


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


@pytest.mark.parametrize("off_ms", [0.0, 0.5, 1.5, 2.5, 4.0, 9.0])
@pytest.mark.parametrize("count", [100, 1500])
def test_what_is_allowed_is_what_is_judged_by(off_ms: float, count: int) -> None:
    profile = load_profile("net2")
    normal = statistics.NormalDist(80 + off_ms, 20)
    delays = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]
    measured = Measured(directions=(direction("a", "b", count, delays, profile=profile),))
    (d,) = measured.directions
    allowed = measured.allowances(d, profile)
    assert set(allowed) == {"mean_ms", "sd_ms", "shape_distance", "loss_pct"}
    assert (allowed["mean_ms"].asked, allowed["mean_ms"].tolerance) == pytest.approx((80, 0.8), rel=0.001)
    mean = allowed["mean_ms"]
    beyond = abs(d.mean_ms - mean.asked) > mean.tolerance + mean.sampling_error
    assert beyond == any("mean delay" in problem for problem in measured.problems(profile))
    assert str(mean).startswith("79.98 ± 0.8 ± ")


def test_shape_distance_is_kolmogorovs() -> None:
    expected = [float(i) for i in range(100)]
    assert shape_distance(expected, expected) == pytest.approx(0.01)
    assert shape_distance([200.0] * 5, expected) == 1.0
    assert shape_distance([i + 10.0 for i in range(100)], expected) == pytest.approx(0.11, abs=0.011)
    assert shape_distance([5.1] * 50, [5.0] * 50) == 1.0
    assert shape_distance([5.1] * 50, [5.0] * 50, slack=0.2) == 0.0


def test_a_wrong_shape_with_the_right_mean_and_spread_is_noticed() -> None:
    profile = Profile(name="x", delay_ms=50, jitter_ms=10, distribution="normal")
    draws = random.Random(1)
    half = 10 * math.sqrt(3)
    delays = [50 + draws.uniform(-half, half) for _ in range(4000)]
    (problem,) = Measured(directions=(direction("a", "b", 4000, delays, profile=profile),)).problems(profile)
    assert "not distributed as asked" in problem


def test_a_change_of_netem_mentions_what_it_takes_away() -> None:
    plain = netem_summary(netem_change_options(Profile(name="x", delay_ms=20)))
    assert plain["delay_ns"] == 20 * MS
    assert (plain["rate_bytes_per_s"], plain["corrupt_of_2_32"], plain["reorder_of_2_32"]) == (0, 0, 0)
    table = 8192 + 4  # a table cannot be taken away, so uniform jitter has one of its own
    uniform = Profile(name="x", delay_ms=5, jitter_ms=1, distribution="uniform")
    normal = Profile(name="x", delay_ms=5, jitter_ms=1, distribution="normal")
    assert len(netem_change_options(uniform)) == len(netem_change_options(normal))
    assert len(netem_change_options(normal)) - len(netem_change_options(Profile(name="x"))) == table
    full = Profile(
        name="x", delay_ms=20, jitter_ms=5, distribution="pareto", rate_mbit=8, loss_pct=1,
        duplicate_pct=2, corrupt_pct=3, reorder_pct=4,
    )  # fmt: skip
    said = netem_summary(netem_change_options(full))
    assert said["rate_bytes_per_s"] == 1_000_000
    assert said["loss_of_2_32"] == round(0.01 * (2**32 - 1))
    assert said["limit_packets"] == full.queue_limit_packets


def test_a_bucket_without_a_rate_stays_with_one_out_of_reach() -> None:
    said = tbf_summary(tbf_options(Profile(name="x", rate_mbit=10)))
    assert said == {"rate_bytes_per_s": 1_250_000, "limit_bytes": 1514 * 86, "burst_ticks": 56775}
    open_ = tbf_summary(tbf_options(Profile(name="x")))
    assert open_["rate_bytes_per_s"] >= 3_000_000_000
