"""The judgement on UDP probes: healthy pods pass, each mismatch is named."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics

import pytest

from ztprobe.conformance import udp_probe
from ztprobe.conformance.judgement import Measured, Rate, direction, shape_distance
from ztprobe.conformance.udp_probe import FRAME_BYTES
from ztprobe.profile.model import Profile, load_profile


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


@pytest.mark.parametrize("jitter_ms", [0.0, 20.0])
@pytest.mark.parametrize(("rate_mbit", "applied_mbit", "wrong"), [(2.0, 2.0, False), (2.0, 2.5, True)])
def test_jitter_is_allowed_for_in_a_rate(
    jitter_ms: float, rate_mbit: float, applied_mbit: float, wrong: bool
) -> None:
    shape = {"jitter_ms": jitter_ms, "distribution": "normal" if jitter_ms else "none"}
    profile = dataclasses.replace(load_profile("net2"), rate_mbit=rate_mbit, **shape)
    gap_ns = FRAME_BYTES * 8e3 / applied_mbit
    chance = random.Random(7)
    found = []
    for _ in range(200):
        count = round((0.55e9 + 6e6 * jitter_ms) / gap_ns)
        arrivals = sorted(round(1e9 + n * gap_ns + chance.gauss(0, jitter_ms * 1e6)) for n in range(count))
        rate = udp_probe.rate_of("client", arrivals, profile)
        found.append(bool(Measured(directions=(), rates=(rate,)).problems(profile)))
    assert sum(found) / len(found) == (1.0 if wrong else 0.0)


def test_overall_values_use_the_names_that_are_asked_for() -> None:
    measured = probes(80, 20)
    assert set(measured.as_dict()) == {"delay_ms", "jitter_ms", "loss_pct", "rate_mbit"}
    assert measured.as_dict()["delay_ms"] == pytest.approx(80, abs=2)
    assert measured.as_dict()["rate_mbit"] is None
    assert len(measured.details()["directions"]) == 10
    assert "5000 probes" in measured.summary()


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
