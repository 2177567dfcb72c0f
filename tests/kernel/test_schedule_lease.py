"""`ztprobe profile` with profiles that change over time: followed, shown, measured, and always undone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.live_run import Cluster, backend, cluster

__all__ = ("backend", "cluster")  # fixtures

PATIENCE = float(os.environ.get("ZTPROBE_TEST_PATIENCE", "1"))
# Software emulation of a CPU measures with an error of milliseconds, and starts a command in seconds.
FIRST_MS, SECOND_MS, WITHIN_MS = (40.0, 10.0, 2.0) if PATIENCE == 1 else (300.0, 100.0, 25.0)
LASTS_S = 3.0 if PATIENCE == 1 else 15.0


def scheduled(tmp_path: Path, *steps: str, repeat: bool = True) -> str:
    path = tmp_path / "moving.yaml"
    listed = "".join(f"    - {{{step}}}\n" for step in steps)
    path.write_text(
        f"name: moving\ndescription: a test\nschedule:\n  repeat: {str(repeat).lower()}\n  steps:\n{listed}"
        "source: {schedule: test}\n"
    )
    return str(path)


def await_step(cluster: Cluster, step: int) -> dict[str, Any]:
    return await_status(cluster, lambda schedule: schedule["step"] == step)


def await_status(cluster: Cluster, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 10 * PATIENCE
    while time.monotonic() < deadline:
        (status,) = cluster.profile("status")
        if wanted(status["schedule"]):
            return dict(status)
    raise AssertionError(f"the lease never got there: {status}")


def keepers(cluster: Cluster, lease: str) -> list[int]:
    """The keeper's two processes and the delay line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        mine = lease.encode() in words and b"ztprobe.agent.lease_keeper" in words
        if mine or any(str(cluster.state).encode() in w for w in words if b"delayline" in w):
            found.append(int(path.parent.name))
    return found


def assert_in_time(schedule: dict[str, Any]) -> None:
    """Every change came; under software emulation of a CPU some may have come late, and none has failed."""
    assert schedule["failed"] is False
    if PATIENCE == 1:
        assert schedule["problems"] == 0
    elif schedule["problems"]:
        assert schedule["last_problem"].endswith(("ms late", "left out: too late"))


def test_a_lease_follows_its_schedule(cluster: Cluster, backend: str, tmp_path: Path) -> None:
    profile = scheduled(
        tmp_path, f"for_s: {LASTS_S}, delay_ms: {FIRST_MS}", f"for_s: {LASTS_S}, delay_ms: {SECOND_MS}"
    )
    lease = cluster.profile("apply", profile, "-l", "pod=client-0", "--backend", backend)
    assert lease["backend"] == backend
    for step, wanted_ms in ((1, FIRST_MS), (2, SECOND_MS), (1, FIRST_MS)):
        status = await_step(cluster, step)
        assert status["in_force"] == "yes"
        assert 0 <= status["schedule"]["next_s"] <= LASTS_S
        assert_in_time(status["schedule"])
        cluster.delay_ms("client-0", "server", count=1)  # netem delays ARP too
        assert cluster.delay_ms("client-0", "server", count=41) == pytest.approx(wanted_ms, abs=WITHIN_MS)
        assert cluster.delay_ms("server", "client-0") < 5 * PATIENCE
    text = cluster.ztprobe("profile", "status").stdout
    assert f"step 1 of 2 ({FIRST_MS:g} ms) since" in text
    cluster.profile("clear")
    cluster.await_nothing(2)


def test_verify_measures_between_two_changes(cluster: Cluster, backend: str, tmp_path: Path) -> None:
    profile = scheduled(
        tmp_path,
        f"for_s: {LASTS_S}, delay_ms: {FIRST_MS}",
        "for_s: 0.05, delay_ms: 500",  # never long enough
        f"for_s: {LASTS_S}, delay_ms: {SECOND_MS}",
    )
    cluster.profile("apply", profile, "-l", "pod=client-0", "--backend", backend)
    steps = []
    for _ in range(3):
        (verdict,) = cluster.profile("verify", "--probes", "200")
        assert verdict["passed"], (verdict["problems"], verdict["causes"])
        steps.append(verdict["step"])
        wanted_ms = {1: FIRST_MS, 3: SECOND_MS}[verdict["step"]]
        assert verdict["measured"]["delay_ms"] == pytest.approx(wanted_ms, abs=WITHIN_MS)
    assert set(steps) == {1, 3}


def test_verify_refuses_where_nothing_lasts(cluster: Cluster, backend: str, tmp_path: Path) -> None:
    profile = scheduled(tmp_path, "for_s: 0.3, delay_ms: 20", "for_s: 0.4, delay_ms: 10")
    cluster.profile("apply", profile, "-l", "pod=client-0", "--backend", backend)
    done = cluster.ztprobe("profile", "verify", fails=5)
    assert "no step lasts longer than 0.4 s, so nothing can be measured between two changes" in done.stderr


def test_a_rate_changes_in_a_lease(cluster: Cluster, tmp_path: Path) -> None:
    profile = scheduled(
        tmp_path,
        f"for_s: {LASTS_S + 2}, rate_mbit: 2",
        f"for_s: {LASTS_S + 2}, rate_mbit: 8",
        repeat=False,
    )
    lease = cluster.profile("apply", profile, "-l", "pod=client-0", "--to", "app=server")
    assert lease["backend"] == "tbf"
    for step, rate_mbit in ((1, 2), (2, 8)):
        await_step(cluster, step)
        (verdict,) = cluster.profile("verify", "--probes", "100")
        assert verdict["passed"], verdict["problems"]
        assert verdict["step"] == step
        assert verdict["measured"]["rate_mbit"] == pytest.approx(rate_mbit, rel=0.05)
    (status,) = cluster.profile("status")
    assert status["schedule"]["next_s"] is None  # it stays


@pytest.mark.parametrize("victims", ["worker", "all"])
def test_killed_in_the_middle_of_a_schedule_nothing_is_left(
    cluster: Cluster, backend: str, tmp_path: Path, victims: str
) -> None:
    profile = scheduled(tmp_path, "for_s: 0.1, delay_ms: 20", "for_s: 0.1, delay_ms: 10, rate_mbit: 50")
    lease = cluster.profile("apply", profile, "-l", "app=client", "--backend", backend)["lease"]
    await_status(cluster, lambda schedule: schedule["changes"] > 3)
    if victims == "worker":
        os.kill(cluster.keeper(lease), signal.SIGKILL)
    else:
        for pid in keepers(cluster, lease):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)
        assert cluster.marks()  # nobody is left to take it away ...
        done = cluster.ztprobe("profile", "status")
        assert "its keeper died" in done.stderr + done.stdout  # ... but the next command
    cluster.await_nothing(4)
    deadline = time.monotonic() + 2 * PATIENCE
    while keepers(cluster, lease) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert keepers(cluster, lease) == []


def test_one_restarted_pod_does_not_stop_the_others(cluster: Cluster, tmp_path: Path) -> None:
    profile = scheduled(tmp_path, "for_s: 0.5, rate_mbit: 5", "for_s: 0.5, rate_mbit: 10")
    lease = cluster.profile("apply", profile, "-l", "app=client")["lease"]
    subprocess.run(["umount", str(cluster.pods["client-1"].netns)], check=True)
    before = await_step(cluster, 1)["schedule"]["changes"]
    after = await_status(cluster, lambda schedule: schedule["changes"] > before + 2)
    assert after["schedule"]["failed"] is False
    assert_in_time(after["schedule"])
    written = json.loads((cluster.state / "leases" / lease / "lease.json").read_text())
    assert written["profile"]["schedule"]["period_ns"] == 10**9
