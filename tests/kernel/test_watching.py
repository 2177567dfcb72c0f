"""Somebody takes away or changes what a profile put on pods: noticed, and nothing else is."""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel import tcx
from tests.kernel.bridged import Node, delays_ms
from tests.kernel.test_emulation import delay_backend, node
from ztprobe.agent.emulator import Emulator
from ztprobe.agent.node_agent import NodeAgent
from ztprobe.errors import EnforcementError
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.preflight.bpf import TCX_EGRESS, TCX_INGRESS
from ztprobe.probes.kernel import KernelProbes
from ztprobe.profile.model import Profile
from ztprobe.profile.schedule import Schedule, Step

__all__ = ("delay_backend", "node")  # fixtures

SOON_S = 5.0


def inside(netns: Path, command: str) -> None:
    """What somebody else does there, with the usual programs."""
    with entered(netns):
        subprocess.run(command.split(), check=True, capture_output=True)


def missed(emulator: Emulator) -> str:
    """What `check` raises."""
    with pytest.raises(EnforcementError) as raised:
        emulator.check()
    return str(raised.value)


@pytest.fixture
def limited(node: Node, tmp_path: Path) -> Iterator[Emulator]:
    """Both pods behind a token bucket."""
    with Emulator(Profile(name="slow", rate_mbit=20), node.pods, node.netns, tmp_path, 1) as emulator:
        emulator.apply()
        assert emulator.backend == "tbf"
        yield emulator


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("tc qdisc del dev eth0 root", "removed"),
        ("tc qdisc replace dev eth0 root handle 9: pfifo", "removed"),
        ("tc qdisc change dev eth0 root handle 5a70: tbf rate 5mbit burst 5kb limit 100kb", "changed"),
        ("tc qdisc add dev eth0 parent 5a70:1 handle 9: pfifo limit 3", "changed"),
    ],
)
def test_a_token_bucket_that_somebody_else_touches(
    node: Node, limited: Emulator, command: str, what: str
) -> None:
    limited.check()
    inside(node.pods[1].netns, command)
    problem = f"slow is in force no longer: the tbf on eth0 of pod-b has been {what} by somebody else"
    assert missed(limited) == problem
    assert missed(limited) == problem  # it stays said


@pytest.mark.parametrize(
    "command",
    [
        "ip link set eth0 txqueuelen 500",
        "tc qdisc add dev lo root handle 9: pfifo",
        "tc qdisc add dev eth0 clsact",
        "ip link add other type ifb",
    ],
)
def test_what_others_do_elsewhere_is_their_business(node: Node, limited: Emulator, command: str) -> None:
    inside(node.pods[0].netns, command)
    limited.check()


def test_traffic_is_no_change(node: Node, limited: Emulator) -> None:
    assert len(delays_ms(*node.pods, count=201, gap_s=0.0005)) == 201
    limited.check()


def test_netem_or_the_delay_line_s_rules_that_somebody_else_removes(
    node: Node, tmp_path: Path, delay_backend: str
) -> None:
    profile = Profile(name="far", delay_ms=5)
    with Emulator(profile, node.pods, node.netns, tmp_path, 1, backend=delay_backend) as emulator:
        emulator.apply()
        emulator.check()
        if delay_backend == "netem":
            inside(node.pods[0].netns, "tc qdisc del dev eth0 root")
            expected = "the netem on eth0 of pod-a has been removed by somebody else"
        else:
            inside(node.netns, "iptables -t mangle -A FORWARD -s 192.0.2.1 -j ACCEPT")
            emulator.check()
            inside(node.netns, "iptables -t mangle -F ZTPROBE-DELAY")
            expected = "somebody else has removed 2 of the delay line's 2 rules; packets pass undelayed"
        assert missed(emulator) == f"far is in force no longer: {expected}"


def stepping(first_s: float) -> Profile:
    steps = (Step(at_ns=0, rate_mbit=20), Step(at_ns=round(first_s * 1e9), rate_mbit=10))
    return Profile(name="hops", rate_mbit=20, schedule=Schedule(steps=steps))


def until(arrived: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SOON_S
    while not arrived():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def rate_of(pod: Pod) -> str:
    with entered(pod.netns):
        shown = subprocess.run(["tc", "qdisc", "show", "dev", "eth0"], capture_output=True, text=True)
    return shown.stdout


def test_a_schedule_s_own_step_is_not_reported(node: Node, tmp_path: Path) -> None:
    told: list[str] = []
    with Emulator(stepping(0.2), node.pods, node.netns, tmp_path, 1) as emulator:
        emulator.apply()
        emulator.follow(told.append)
        until(lambda: emulator.check() is None and all("10Mbit" in rate_of(pod) for pod in node.pods))
        emulator.check()
        assert not [line for line in told if "late" not in line]
        inside(node.pods[0].netns, "tc qdisc del dev eth0 root")
        assert "the tbf on eth0 of pod-a has been removed" in missed(emulator)


def test_a_step_hides_nothing_that_somebody_else_has_changed(node: Node, tmp_path: Path) -> None:
    with Emulator(stepping(0.5), node.pods, node.netns, tmp_path, 1) as emulator:
        emulator.apply()
        emulator.follow(lambda _line: None)
        other = "tbf rate 1mbit burst 5kb limit 100kb"
        inside(node.pods[0].netns, f"tc qdisc change dev eth0 root handle 5a70: {other}")
        until(lambda: "10Mbit" in rate_of(node.pods[0]))
        assert "the tbf on eth0 of pod-a has been changed" in missed(emulator)


def test_clearing_is_not_reported(limited: Emulator) -> None:
    limited.clear()
    limited.check()


@pytest.mark.parametrize("hook", ["tcx", "clsact"])
@pytest.mark.parametrize(
    ("device", "way", "what"),
    [
        ("eth0", "egress", "the probe tc_eth_out on eth0 of pod-b has been removed"),
        ("eth0", "ingress", "the probe tc_eth_in on eth0 of pod-b has been removed"),
        ("lo", "egress", "the probe tc_lo_out on lo of pod-b has been removed"),
    ],
)
def test_probes_that_somebody_else_takes_away(
    node: Node, hook: str, device: str, way: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "tc filter add dev eth0 ingress prio 7 protocol all u32 match u32 0 0 flowid 1:1"
    netns = node.pods[1].netns
    if hook == "clsact":
        monkeypatch.setattr(
            "ztprobe.agent.node_agent.KernelProbes", functools.partial(KernelProbes, tcx=False)
        )
    with NodeAgent() as agent:
        agent.prepare()
        for pod in node.pods:
            agent.add_pod(pod)
        hooks = agent.start()
        if hook not in hooks["dns"]:
            pytest.skip("this kernel has no tcx")
        assert agent.status().problem is None
        if not has_clsact(netns):
            inside(netns, "tc qdisc add dev eth0 clsact")
        inside(netns, other)
        inside(netns, "tc filter del dev eth0 ingress prio 7")
        assert agent.status().problem is None
        if hook == "tcx":
            tcx.detach(netns, device, TCX_EGRESS if way == "egress" else TCX_INGRESS)
        else:
            inside(netns, f"tc filter del dev {device} {way}")
        problem = agent.status().problem
        assert agent.status().problem == problem  # it stays said
    assert problem == f"not all that happens is seen any more: {what} by somebody else"


def has_clsact(netns: Path) -> bool:
    shown = ["tc", "qdisc", "show", "dev", "eth0"]
    with entered(netns):
        return "clsact" in subprocess.run(shown, check=True, capture_output=True, text=True).stdout
