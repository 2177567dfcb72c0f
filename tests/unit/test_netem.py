"""What the kernel's qdiscs are told for a profile: netem's and tbf's options."""

from __future__ import annotations

import statistics
import struct
from pathlib import Path

import pytest

from ztprobe.emulation.netem import netem_change_options, netem_options, netem_summary
from ztprobe.emulation.tbf import tbf_options, tbf_summary
from ztprobe.profile.model import GilbertElliott, Profile, load_profile

MS = 1_000_000


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
