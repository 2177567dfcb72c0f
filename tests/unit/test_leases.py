"""Leases: written whole, read back the same, and known to be abandoned."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from ztprobe import paths
from ztprobe.agent import node_leases
from ztprobe.agent.interface import LeaseRequest
from ztprobe.emulation.backends import choose_backend, refusal
from ztprobe.errors import EnforcementError, PreflightError
from ztprobe.leases import records
from ztprobe.pods.model import Pod
from ztprobe.process.identity import ProcessIdentity
from ztprobe.profile.model import GilbertElliott, Profile
from ztprobe.profile.schedule import Schedule, Step

SCHEDULE = Schedule(
    steps=(
        Step(at_ns=0, delay_ms=20, loss_pct=1),
        Step(at_ns=10**9, delay_ms=50, jitter_ms=5, distribution="normal", rate_mbit=10),
    ),
    period_ns=3 * 10**9,
)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    return tmp_path / "state"


def a_lease(profile: Profile, left_s: float = 60.0) -> records.Lease:
    pod = Pod(
        name="p", namespace="fl", labels={"app": "x"}, address="10.0.0.1", netns=Path("/n/p"), netns_inode=1,
        interface="eth0", host_interface="v-p", node_netns=Path("/n/node"), run="r",
    )  # fmt: skip
    inner = records.SavedPart(
        what="filter", kind="u32", handle=0x8000_0800, parent=0x70000, info=0x50008, chain=0, options_hex="01"
    )
    saved = records.SavedQdisc(kind="tbf", handle=0x70000, options_hex="00ff", parts=(inner,))
    return records.Lease(
        id=records.new_id(), profile=profile, backend="netem", direction="both",
        selector="app=x", to="app=y", namespace="fl", pods=(pod,), peers=(pod,),
        points=(
            records.Point(
                pod="fl/p", direction="egress", netns=Path("/n/p"), netns_inode=1,
                interface="eth0", saved=saved,
            ),
        ),
        rules=(records.NodeRules(netns=Path("/n/node"), netns_inode=2, chain="C", first_queue=7),),
        owner=ProcessIdentity.own(), created_ns=records.now_ns(),
        expires_ns=records.now_ns() + round(left_s * 1e9),
    )  # fmt: skip


def test_a_namespace_s_number_that_comes_back_is_another_pod_s(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_leases, "plan_points", lambda *_, **__: ())
    monkeypatch.setattr(node_leases, "plan_rules", lambda *_: ())
    netns = tmp_path / "netns"
    netns.touch()
    slow = Profile(name="slow", rate_mbit=10)
    before = a_lease(slow)
    (pod,) = before.pods
    there = dataclasses.replace(pod, netns=netns, netns_inode=netns.stat().st_ino)
    wanted = LeaseRequest(profile=slow, pods=(there,), lasts_s=60, backend="tbf")
    dataclasses.replace(before, pods=(there,)).write()
    with pytest.raises(EnforcementError, match="fl/p is under slow already"):
        node_leases.NodeLeases().plan_lease(wanted)
    gone = dataclasses.replace(there, netns=tmp_path / "gone")
    dataclasses.replace(before, pods=(gone,)).write()
    assert node_leases.NodeLeases().plan_lease(wanted).pods == (there,)


@pytest.mark.parametrize(
    "profile",
    [
        Profile(name="a", delay_ms=20, jitter_ms=5, distribution="pareto", rate_mbit=10),
        Profile(name="b", loss_gilbert_elliott=GilbertElliott(good_to_bad_pct=1, bad_to_good_pct=10)),
        Profile(name="c", distribution="samples", samples_ms=(1.0, 2.0, 3.0, 50.0)),
        Profile(name="d", burst_bytes=20_000, schedule=SCHEDULE),
        Profile(name="e", delay_correlation_pct=20, schedule=SCHEDULE),
    ],
)
def test_what_is_written_is_read(state: Path, profile: Profile) -> None:
    lease = a_lease(profile)
    lease.write()
    (read,) = records.all_leases()
    assert dataclasses.asdict(read) == dataclasses.asdict(lease)
    assert read.profile.steps == lease.profile.steps
    assert read.abandoned is None
    lease.remove()
    lease.remove()
    assert records.all_leases() == []
    assert not state.exists()


def test_a_dead_owner_or_a_passed_expiry_is_noticed(state: Path) -> None:
    lease = a_lease(Profile(name="a", delay_ms=1), left_s=-60)
    assert lease.abandoned == "it has expired"
    process = subprocess.Popen(["true"])
    identity = ProcessIdentity(pid=process.pid, started_ticks=1)
    process.wait()
    lease = a_lease(Profile(name="a", delay_ms=1))
    lease.owner = identity
    assert lease.abandoned == "its keeper died"
    assert ProcessIdentity.own().alive
    assert not ProcessIdentity(pid=os.getpid(), started_ticks=1).alive  # the pid was reused


def test_the_step_in_force_is_kept_beside_the_lease(state: Path) -> None:
    lease = a_lease(Profile(name="a", schedule=SCHEDULE))
    lease.write()
    assert lease.step_in_force() is None
    assert lease.profile_now.delay_ms == 20
    held = records.StepInForce(number=3, step=1, since_ns=7, until_ns=None, problems=1, last_problem="late")
    lease.write_step(held)
    (read,) = records.all_leases()
    assert read.step_in_force() == held
    assert (read.profile_now.delay_ms, read.profile_now.rate_mbit) == (50, 10)
    lease.remove()
    lease.write_step(held)  # by a keeper that is ending: nothing comes back
    assert not state.exists()


def test_a_half_written_lease_is_skipped(state: Path) -> None:
    (state / "leases" / "abc").mkdir(parents=True)
    (state / "leases" / "abc" / "lease.json").write_text('{"id": "abc"')
    assert records.all_leases() == []


def test_words_for_durations() -> None:
    assert [records.words(s) for s in (-3, 0.2, 59.6, 598, 3600, 90061)] == [
        "0s",
        "0s",
        "1m",
        "9m58s",
        "1h",
        "1d1h",
    ]


def test_what_a_backend_cannot_do_is_refused_by_name() -> None:
    corrupting = Profile(name="x", corrupt_pct=1)
    correlated = Profile(name="y", delay_ms=9, jitter_ms=2, distribution="normal", delay_correlation_pct=50)
    assert choose_backend(corrupting, netem=True) == "netem"
    with pytest.raises(PreflightError, match=r"cannot do corrupt_pct.*this kernel has no netem"):
        choose_backend(corrupting, netem=False)
    assert "delay_correlation_pct" in (refusal(correlated, "netem") or "")
    assert choose_backend(correlated, netem=True) == "nfqueue"
    assert choose_backend(Profile(name="z", rate_mbit=5), netem=True) == "tbf"
    assert choose_backend(Profile(name="z", rate_mbit=5, delay_ms=1), netem=False) == "nfqueue+tbf"
    assert choose_backend(Profile(name="z"), netem=False) == "none"
    with pytest.raises(PreflightError, match="rate_mbit above 34359"):
        choose_backend(Profile(name="z", rate_mbit=40_000), netem=True)
    deep = Profile(name="z", rate_mbit=5, delay_ms=1, burst_bytes=100_000)
    assert choose_backend(deep, netem=True) == "nfqueue+tbf"


def test_a_backend_is_chosen_for_all_steps_together() -> None:
    scheduled = Profile(name="s", schedule=SCHEDULE)
    assert choose_backend(scheduled, netem=True) == "netem"
    assert choose_backend(scheduled, netem=False) == "nfqueue+tbf"
    rates = (Step(at_ns=0, rate_mbit=5), Step(at_ns=10**9))
    assert choose_backend(Profile(name="r", schedule=Schedule(steps=rates)), netem=True) == "tbf"
    later = (Step(at_ns=0), Step(at_ns=10**9, delay_ms=5))
    assert choose_backend(Profile(name="l", schedule=Schedule(steps=later)), netem=False) == "nfqueue"
