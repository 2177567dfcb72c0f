"""`ztprobe profile` on pods that run: applied, verified, ended, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.kernel.bridged import numbered
from tests.kernel.live_run import PATIENCE, Cluster, backend, cluster, parent_of, profile_file
from tests.kernel.test_emulation import ROOMY, bulk_s
from ztprobe.agent.emulator import Emulator
from ztprobe.agent.interface import LeaseRequest
from ztprobe.agent.remote import AgentProcess
from ztprobe.emulation.netem import netem_supported
from ztprobe.errors import EnforcementError, UsageError
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.pods.model import Pod
from ztprobe.profile.model import Profile, load_profile

__all__ = ("backend", "cluster")  # fixtures

LONG_MS = 30 * PATIENCE
WITHIN_MS = 2 * PATIENCE
UNDELAYED_MS = 5 * PATIENCE
# A profile with normal jitter, its mean, and how far the median of 61 may be from it (4 standard errors).
NORMAL, NORMAL_MS, NORMAL_WITHIN_MS = ("net1", 20, 3) if PATIENCE == 1 else ("net2", 80, 13)


def test_egress_is_delayed_verified_and_undone(cluster: Cluster, backend: str) -> None:
    lease = cluster.profile("apply", NORMAL, "-l", "app=client", "--for", "5m", "--backend", backend)
    assert lease["backend"] == backend
    assert lease["pods"] == ["fl/client-0", "fl/client-1"]
    assert cluster.delay_ms("client-0", "server", count=61) == pytest.approx(NORMAL_MS, abs=NORMAL_WITHIN_MS)
    assert cluster.delay_ms("server", "client-0") < UNDELAYED_MS
    (verdict,) = cluster.profile("verify", "--probes", "600")
    assert verdict["passed"], verdict["problems"]
    (status,) = cluster.profile("status")
    assert status["in_force"] == "yes"
    assert status["packets"] > 500  # of the delay line, up to a second ago
    cluster.profile("clear", lease["lease"])
    cluster.await_nothing(2)
    assert cluster.delay_ms("client-0", "server") < UNDELAYED_MS


def test_the_agent_takes_leases_from_outside_its_process(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which outlive it, and are the ones that the command line shows."""
    monkeypatch.setenv("ZTPROBE_STATE_DIR", str(cluster.state))
    profile = load_profile(profile_file(tmp_path, f"delay_ms: {LONG_MS:g}"))
    client, server = (replace(cluster.pods[name], run="live") for name in ("client-0", "server"))
    wanted = LeaseRequest(profile=profile, pods=(client,), peers=(server,), lasts_s=60, namespace="fl")
    with AgentProcess(tmp_path / "batches", tmp_path, tmp_path / "log", probes=False) as agent:
        lease = agent.plan_lease(wanted)
        assert agent.leases() == []
        agent.begin_lease(lease)
    assert cluster.delay_ms("client-0", "server") == pytest.approx(LONG_MS, abs=WITHIN_MS)
    assert cluster.delay_ms("client-0", "client-1") < UNDELAYED_MS
    (status,) = cluster.profile("status")
    assert (status["lease"], status["in_force"]) == (lease.id, "yes")
    with AgentProcess(tmp_path / "more", tmp_path, tmp_path / "log", probes=False) as agent:
        (state,) = agent.leases()
        assert (state.lease.id, state.lease.profile, state.counted["in_force"]) == (lease.id, profile, "yes")
        with pytest.raises(EnforcementError, match=f"fl/client-0 is under .* already .lease {lease.id}"):
            agent.plan_lease(wanted)
        with pytest.raises(UsageError, match=f"no lease none: there are {lease.id}"):
            agent.end_leases(["none"])
        assert [one.id for one in agent.end_leases([])] == [lease.id]
    cluster.await_nothing(2)
    assert cluster.delay_ms("client-0", "server") < UNDELAYED_MS


def test_ingress_and_both(cluster: Cluster, backend: str, tmp_path: Path) -> None:
    profile = profile_file(tmp_path, f"delay_ms: {LONG_MS:g}")
    base = ("-l", "pod=client-0", "--backend", backend)
    cluster.profile("apply", profile, *base, "--direction", "ingress")
    assert cluster.delay_ms("server", "client-0") == pytest.approx(LONG_MS, abs=WITHIN_MS)
    assert cluster.delay_ms("client-0", "server") < UNDELAYED_MS
    cluster.profile("clear")
    cluster.profile("apply", profile, *base, "--direction", "both")
    assert cluster.delay_ms("server", "client-0") == pytest.approx(LONG_MS, abs=WITHIN_MS)
    assert cluster.delay_ms("client-0", "server") == pytest.approx(LONG_MS, abs=WITHIN_MS)
    (verdict,) = cluster.profile("verify", "--probes", "200")
    assert verdict["passed"], verdict["problems"]


def test_to_leaves_other_traffic_alone(cluster: Cluster, backend: str, tmp_path: Path) -> None:
    profile = profile_file(tmp_path, f"delay_ms: {LONG_MS:g}")
    cluster.profile("apply", profile, "-l", "pod in (client-0)", "--to", "app=server", "--backend", backend)
    assert cluster.delay_ms("client-0", "server") == pytest.approx(LONG_MS, abs=WITHIN_MS)
    assert cluster.delay_ms("client-0", "client-1") < UNDELAYED_MS
    (verdict,) = cluster.profile("verify", "--probes", "200")
    assert [d["receiver"] for d in verdict["directions"]] == ["server"]
    assert verdict["passed"], verdict["problems"]


def test_a_rate_is_measured_and_restricted(cluster: Cluster, tmp_path: Path) -> None:
    roomy = "".join(f"\n{key}: {value}" for key, value in ROOMY.items())
    profile = profile_file(tmp_path, f"rate_mbit: 10{roomy}")
    lease = cluster.profile("apply", profile, "-l", "pod=client-1", "--to", "app=server")
    assert lease["backend"] == "tbf"
    (verdict,) = cluster.profile("verify", "--probes", "300")
    assert verdict["passed"], verdict["problems"]
    assert verdict["measured"]["rate_mbit"] == pytest.approx(10, rel=0.02)


def test_no_packet_is_lost_as_a_delay_line_comes_and_goes(cluster: Cluster, tmp_path: Path) -> None:
    profile = profile_file(
        tmp_path, f"delay_ms: {LONG_MS:g}\njitter_ms: {LONG_MS / 4:g}\ndistribution: uniform"
    )
    with numbered(cluster.pods["client-0"], cluster.pods["server"]) as arrived:
        for _ in range(3):
            cluster.profile("apply", profile, "-l", "pod=client-0", "--backend", "nfqueue")
            cluster.profile("clear")
    assert arrived.missing() == 0, arrived.sent


def test_a_lease_ends_by_itself(cluster: Cluster, backend: str) -> None:
    cluster.profile("apply", "net4", "-l", "app=client", "--for", "1s", "--backend", backend)
    cluster.await_nothing(4)


def test_apply_that_is_interrupted_leaves_nothing(cluster: Cluster) -> None:
    words = [sys.executable, "-m", "ztprobe", "profile", "apply", "net4", "-l", "app=client"]
    with subprocess.Popen(
        [*words, "--backend", "nfqueue"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO_DIR,
        env={**os.environ, "ZTPROBE_STATE_DIR": str(cluster.state)},
    ) as process:
        deadline = time.monotonic() + 20 * PATIENCE
        while not list(cluster.state.glob("leases/*/lease.json")):  # its keeper is at work
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=60 * PATIENCE)
    assert (process.returncode, said) == (130, ""), complaint
    assert "everything has been cleaned up" in complaint
    assert cluster.marks() == []
    assert not (cluster.state / "leases").exists()


@pytest.mark.parametrize("victim", ["worker", "warden", "worker's group", "warden's group"])
def test_a_killed_keeper_leaves_nothing(cluster: Cluster, backend: str, victim: str) -> None:
    lease = cluster.profile("apply", "net4", "-l", "app=client", "--backend", backend)["lease"]
    worker = cluster.keeper(lease)
    pid = worker if victim.startswith("worker") else parent_of(worker)
    if victim.endswith("group"):
        os.killpg(os.getpgid(pid), signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)
    cluster.await_nothing(4)


def test_the_next_command_cleans_what_a_kill_of_everything_left(cluster: Cluster, backend: str) -> None:
    lease = cluster.profile("apply", "net4", "-l", "app=client", "--backend", backend)["lease"]
    cluster.kill_both_keepers(lease)
    time.sleep(0.2 * PATIENCE)
    assert cluster.marks()
    done = cluster.ztprobe("doctor" if backend == "netem" else "clean")
    assert f"lease {lease} of net4 (its keeper died)" in done.stdout + done.stderr
    cluster.await_nothing(1)


def test_a_lease_ends_with_its_pods(cluster: Cluster, backend: str) -> None:
    cluster.profile("apply", "net4", "-l", "pod=client-0", "--backend", backend)
    pod = cluster.pods["client-0"]
    subprocess.run(["umount", str(pod.netns)], check=True)  # what deleting the namespace does
    for journal in cluster.state.glob("*/journal.json"):  # and its run: no pod of it can come
        journal.unlink()
    deadline = time.monotonic() + 3 * PATIENCE
    while (cluster.state / "leases").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not (cluster.state / "leases").exists()


def test_someone_elses_qdisc_is_refused_or_put_back(cluster: Cluster) -> None:
    pod = cluster.pods["client-0"]
    with entered(pod.netns):
        add = "tc qdisc add dev eth0 root handle 7: tbf rate 8mbit burst 9000 limit 90000"
        subprocess.run(add.split(), check=True)
        before = _root(pod)
    done = cluster.ztprobe("profile", "apply", "net5", "-l", "pod=client-0", fails=5)
    assert "eth0 already has the qdisc tbf 7:" in done.stderr
    assert _root(pod) == before
    lease = cluster.profile("apply", "net5", "-l", "pod=client-0", "--replace")
    assert [i["replaces"] for i in lease["interfaces"]] == ["tbf"]
    assert "5a71:" in _root(pod)
    cluster.profile("clear")
    assert _root(pod) == before


@pytest.mark.long
def test_verify_explains(cluster: Cluster, tmp_path: Path) -> None:
    profile = profile_file(tmp_path, "delay_ms: 20")
    backend = ("--backend", "nfqueue")
    cluster.profile("apply", profile, "-l", "pod=client-0", *backend, "--to", "app=server")
    cluster.profile("apply", profile, "-l", "app=server", "--direction", "ingress", *backend)
    first, _ = cluster.profile("verify", "--probes", "200")
    assert "twice the delay" in first["problems"][0]
    assert "applied at both ends: leaving client-0" in first["causes"][0]
    cluster.profile("clear")
    lease = cluster.profile("apply", profile, "-l", "pod=client-0", *backend)["lease"]
    with entered(cluster.node):
        subprocess.run(["iptables", "-t", "mangle", "-F", f"ZTPROBE-{lease}"], check=True)
    text = cluster.ztprobe("profile", "verify", "--probes", "200", fails=5).stdout
    assert "because: the profile is not on the path (0 of 1 rules" in text
    (verdict,) = cluster.profile("verify", "--probes", "200")
    assert "the profile is not on the path" in verdict["problems"][0]


def test_dry_run_and_refusals_change_nothing(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.ztprobe("profile", "apply", "net1", "-l", "app=client", "--dry-run")
    assert "dry run: nothing was changed" in done.stdout
    corrupting = profile_file(tmp_path, "corrupt_pct: 1")
    done = cluster.ztprobe(
        "profile", "apply", corrupting, "-l", "app=client", "--backend", "nfqueue", fails=3
    )
    assert "the delay line cannot do corrupt_pct" in done.stderr
    done = cluster.ztprobe("profile", "apply", "net1", "-l", "app=nobody", fails=2)
    assert "matches no pod in namespace fl" in done.stderr
    done = cluster.ztprobe("profile", "apply", "net1", "-l", "app=client", "--run", "other", fails=2)
    assert "--run other: no such run is going on; there is ztp-t" in done.stderr
    cluster.profile("apply", "net1", "-l", "pod=client-0")
    done = cluster.ztprobe("profile", "apply", "net4", "-l", "app=client", fails=5)
    assert "fl/client-0 is under net1 already" in done.stderr
    cluster.profile("clear")
    cluster.await_nothing(1)


@pytest.mark.parametrize(
    ("text", "probes"),
    [
        ("delay_ms: 30\njitter_ms: 8\ndistribution: pareto", 1500),
        ("delay_ms: 30\njitter_ms: 8\ndistribution: paretonormal", 1500),
        (
            "distribution: samples\nsamples_ms: [10, 11, 12, 13, 14, 15, 16, 20, 25, 30, 31, 32, 33, 34, 50, 60]",  # noqa: E501
            1500,
        ),
        ("delay_ms: 100\nreorder_pct: 25", 1000),
        ("loss_pct: 10\nloss_correlation_pct: 50", 3000),
        ("loss_gilbert_elliott: {good_to_bad_pct: 2, bad_to_good_pct: 20}", 3000),
    ],
)
def test_shapes_and_models_measure_as_they_ask(
    cluster: Cluster, backend: str, tmp_path: Path, text: str, probes: int
) -> None:
    cluster.profile(
        "apply", profile_file(tmp_path, _longer(text)), "-l", "pod=client-0", "--backend", backend
    )
    (verdict,) = cluster.profile("verify", "--probes", str(probes))
    assert verdict["passed"], verdict["problems"]


def _longer(text: str) -> str:
    """The same profile with every time `PATIENCE` times as long."""
    values = yaml.safe_load(text)
    for key, value in values.items():
        if key.endswith("_ms"):
            values[key] = [one * PATIENCE for one in value] if isinstance(value, list) else value * PATIENCE
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items())


def _root(pod: Pod) -> str:
    with entered(pod.netns):
        command = ["tc", "qdisc", "show", "dev", "eth0", "root"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


@pytest.mark.optional
@pytest.mark.parametrize("text", ["delay_ms: 100\nduplicate_pct: 10", "delay_ms: 100\ncorrupt_pct: 10"])
def test_netem_copies_and_corrupts(cluster: Cluster, tmp_path: Path, text: str) -> None:
    if not netem_supported():
        pytest.skip("no netem (CONFIG_NET_SCH_NETEM)")
    lease = cluster.profile("apply", profile_file(tmp_path, text), "-l", "pod=client-0", "--to", "app=server")
    assert lease["backend"] == "netem"
    (verdict,) = cluster.profile("verify", "--probes", "1500")
    assert verdict["passed"], (verdict["problems"], verdict["measured"])
    (direction,) = verdict["directions"]
    if "duplicate" in text:
        assert 80 < direction["duplicates"] < 230
    else:
        assert direction["received"] < 1450


@pytest.mark.optional
def test_netem_meets_every_frame_of_a_large_packet(cluster: Cluster, tmp_path: Path) -> None:
    if not netem_supported():
        pytest.skip("no netem (CONFIG_NET_SCH_NETEM)")
    cluster.profile(
        "apply", profile_file(tmp_path, "loss_pct: 0.01"), "-l", "pod=client-0", "--backend", "netem"
    )
    a, b = cluster.pods["client-0"], cluster.pods["server"]
    bulk_s(a, b, 1_000_000)
    (status,) = cluster.profile("status")
    assert status["packets"] >= 1_000_000 / 1448  # with offloads on, and not one packet of 64 KB for 45


def test_pods_under_their_runs_own_profile_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    pod = cluster.pods["client-0"]
    own = Profile(name="own", delay_ms=5, rate_mbit=50)
    with Emulator(own, [pod], cluster.node, tmp_path, 1, backend="nfqueue+tbf") as emulator:
        emulator.apply()
        for name in ("net1", "net5"):
            words = ("profile", "apply", name, "-l", "pod=client-0", "--backend", "nfqueue")
            done = cluster.ztprobe(*(words if name == "net1" else words[:-2]), fails=5)
            assert "under a profile of its own already" in done.stderr
    cluster.profile("apply", "net1", "-l", "pod=client-0")
