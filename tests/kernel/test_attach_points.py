"""Where `ztprobe profile` acts, and what it puts back: either end of a veth, beside others' filters."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.kernel.live_run import PATIENCE, Cluster, cluster, profile_file
from tests.kernel.test_emulation import bulk_s
from ztprobe.emulation.netem import netem_supported
from ztprobe.kernelnet.netns import entered, inode
from ztprobe.pods.model import Pod
from ztprobe.probes.kernel import KernelProbes

__all__ = ("cluster",)  # a fixture

BYTES = 250_000


@pytest.fixture(params=["pod", "host"])
def at(request: pytest.FixtureRequest) -> str:
    """Either end of the veth."""
    return str(request.param)


def tc(place: Path, words: str) -> str:
    """Run tc inside a namespace."""
    with entered(place):
        done = subprocess.run(["tc", *words.split()], capture_output=True, text=True, check=True)
    return done.stdout


def filters(cluster: Cluster, pod: str) -> str:
    """What is on a pod's interface, and on the host end, for packets that come in."""
    made = cluster.pods[pod]
    shown = tc(made.netns, "filter show dev eth0 ingress") + tc(made.netns, "qdisc show dev eth0")
    shown += tc(cluster.node, f"filter show dev {made.host_interface} ingress")
    return shown + tc(cluster.node, f"qdisc show dev {made.host_interface}")


def tree(pod: Pod) -> str:
    """Every qdisc, class and filter, without what counts."""
    shown = tc(pod.netns, "qdisc show dev eth0") + "".join(
        sorted(tc(pod.netns, "class show dev eth0").splitlines(keepends=True))
    )
    for parent in ("7:", "7:1", "7:10", "8:"):
        with entered(pod.netns):
            command = ["tc", "filter", "show", "dev", "eth0", "parent", parent]
            shown += subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return re.sub(r"direct_packets_stat \d+", "", shown)


def goodput_mbit(cluster: Cluster, sender: str, receiver: str) -> float:
    """Of one TCP connection, in frames of 1514 bytes."""
    took_s = bulk_s(cluster.pods[sender], cluster.pods[receiver], BYTES)
    return BYTES * 1514 / 1448 * 8 / took_s / 1e6


def ifbs(cluster: Cluster) -> list[str]:
    """IFB devices anywhere."""
    found = []
    for place in (cluster.node, *(pod.netns for pod in cluster.pods.values())):
        with entered(place):
            done = subprocess.run(
                ["ip", "-j", "link", "show", "type", "ifb"], capture_output=True, text=True, check=True
            )
        found += [link["ifname"] for link in json.loads(done.stdout or "[]") if link]
    return found


def test_either_end_shapes_either_direction(cluster: Cluster, at: str) -> None:
    before = filters(cluster, "client-0")
    for direction in ("egress", "ingress"):
        lease = cluster.profile("apply", "net5", "-l", "pod=client-0", "--direction", direction, "--at", at)
        (interface,) = lease["interfaces"]
        assert (interface["ifb"] is not None) == ((at, direction) in {("pod", "ingress"), ("host", "egress")})
        assert ifbs(cluster) == ([interface["ifb"]] if interface["ifb"] else [])
        (status,) = cluster.profile("status")
        assert status["in_force"] == "yes"
        (verdict,) = cluster.profile("verify", "--probes", "300")
        assert verdict["passed"], verdict["problems"]
        assert verdict["measured"]["rate_mbit"] == pytest.approx(10, rel=0.02)
        there, back = ("client-0", "server") if direction == "egress" else ("server", "client-0")
        # the bucket starts full; what has no profile is tens of times as fast
        assert goodput_mbit(cluster, there, back) < 11
        assert goodput_mbit(cluster, back, there) > 25
        cluster.profile("clear")
        cluster.await_nothing(2)
        assert ifbs(cluster) == []
        assert filters(cluster, "client-0") == before


def test_both_directions_at_one_end(cluster: Cluster, at: str) -> None:
    cluster.profile("apply", "net5", "-l", "app=client", "--direction", "both", "--at", at)
    assert len(ifbs(cluster)) == 2
    for there, back in (("client-1", "server"), ("server", "client-1")):
        assert goodput_mbit(cluster, there, back) < 11
    cluster.profile("clear")
    cluster.await_nothing(2)
    assert ifbs(cluster) == []


def test_to_picks_peers_behind_an_ifb(cluster: Cluster, at: str) -> None:
    direction = "ingress" if at == "pod" else "egress"
    cluster.profile(
        "apply", "net5", "-l", "pod=client-0", "--to", "app=server", "--at", at, "--direction", direction
    )
    for peer, slow in (("server", True), ("client-1", False)):
        ends = (peer, "client-0") if direction == "ingress" else ("client-0", peer)
        rate_mbit = goodput_mbit(cluster, *ends)
        assert (rate_mbit < 11) if slow else (rate_mbit > 25), peer


def test_auto_takes_an_ifb_where_the_host_end_is_unknown(cluster: Cluster) -> None:
    (journal,) = cluster.state.glob("*/journal.json")
    record = json.loads(journal.read_text())
    for pod in record["pods"]:
        pod["host_interface"] = ""
    journal.write_text(json.dumps(record))
    done = cluster.ztprobe("profile", "apply", "net5", "-l", "pod=client-0", "--at", "host", fails=5)
    assert "the host end of its interface is not known on this node: take --at pod" in done.stderr
    done = cluster.ztprobe("profile", "apply", "net5", "-l", "pod=client-0", "--direction", "ingress")
    assert "a trace of these pods takes the delay for the receiver's" in done.stdout
    assert len(ifbs(cluster)) == 1
    assert goodput_mbit(cluster, "server", "client-0") < 11


@pytest.mark.parametrize("how", ["worker", "everything", "expiry"])
def test_an_ifb_goes_with_its_lease(cluster: Cluster, at: str, how: str) -> None:
    direction = "ingress" if at == "pod" else "egress"
    before = filters(cluster, "client-0")
    words = ("apply", "net5", "-l", "pod=client-0", "--at", at, "--direction", direction)
    lease = cluster.profile(*words, *(("--for", "1s") if how == "expiry" else ()))["lease"]
    if how != "expiry":
        assert ifbs(cluster)
        if how == "worker":
            os.kill(cluster.keeper(lease), signal.SIGKILL)
        else:
            cluster.kill_both_keepers(lease)
            time.sleep(0.2 * PATIENCE)
            assert ifbs(cluster)
            cluster.ztprobe("clean")
    cluster.await_nothing(4)
    assert ifbs(cluster) == []
    assert filters(cluster, "client-0") == before


def test_a_profile_whose_record_is_lost_is_refused_with_what_removes_it(cluster: Cluster, at: str) -> None:
    for direction in ("egress", "ingress"):
        words = ("-l", "pod=client-0", "--at", at, "--direction", direction)
        cluster.kill_both_keepers(cluster.profile("apply", "net5", *words)["lease"])
        shutil.rmtree(cluster.state / "leases")
        done = cluster.ztprobe("profile", "apply", "net5", *words, fails=5)
        assert f"has a profile that no lease in {cluster.state} accounts for" in done.stderr
        _, undo = done.stderr.strip().split("takes it away: ")
        subprocess.run(undo.split(), check=True)
        lease = cluster.profile("apply", "net5", *words)["lease"]
        cluster.profile("clear", lease)


def test_other_filters_stay_and_come_first(cluster: Cluster, at: str) -> None:
    pod = cluster.pods["client-0"]
    place, interface = (pod.netns, "eth0") if at == "pod" else (cluster.node, pod.host_interface)
    tc(place, f"qdisc add dev {interface} clsact")
    # it takes what goes to port 7777, and leaves everything else to whoever comes next
    match = "protocol ip prio 3 u32 match ip dport 7777 0xffff flowid 1:9"
    tc(place, f"filter add dev {interface} ingress {match}")
    before = filters(cluster, "client-0")
    direction = "ingress" if at == "pod" else "egress"
    cluster.profile("apply", "net5", "-l", "pod=client-0", "--at", at, "--direction", direction)
    ends = ("server", "client-0") if at == "pod" else ("client-0", "server")
    assert goodput_mbit(cluster, *ends) < 11
    cluster.profile("clear")
    cluster.await_nothing(2)
    assert filters(cluster, "client-0") == before


@pytest.mark.parametrize("hook", ["tcx if there is one", "clsact"])
@pytest.mark.parametrize("first", ["probes", "profile"])
def test_probes_and_redirect_share_an_interface(cluster: Cluster, first: str, hook: str) -> None:
    pod = cluster.pods["client-0"]
    before = filters(cluster, "client-0")
    words = ("apply", "net5", "-l", "pod=client-0", "--at", "pod", "--direction", "ingress")
    kernel = KernelProbes(tcx=hook != "clsact")

    def runs() -> int:
        (ran,) = [cost.run_count for cost in kernel.read_costs() if cost.program == "tc_eth_in"]
        return ran

    try:
        kernel.load()
        kernel.attach()
        kernel.enable_stats()
        kernel.trace_netns(inode(pod.netns))
        if first == "profile":
            cluster.profile(*words)
        kernel.attach_interface(pod.netns, "eth0")
        if first == "probes":
            cluster.profile(*words)
        assert goodput_mbit(cluster, "server", "client-0") < 11
        ran = runs()
        # every packet once: one that comes back from the IFB device is not shown to filters again
        received = _received(pod)
        assert 0 < ran <= received
        if first == "profile":
            cluster.profile("clear")
            assert goodput_mbit(cluster, "server", "client-0") > 11
            assert runs() > ran
    finally:
        kernel.close()
    if first == "probes":
        assert goodput_mbit(cluster, "server", "client-0") < 11
        cluster.profile("clear")
    assert ifbs(cluster) == []
    left = filters(cluster, "client-0")
    assert "tc_eth" not in left
    # Whoever made the clsact may be gone before the other: an empty one may stay, never a filter.
    assert left.replace("qdisc clsact ffff: parent ffff:fff1 \n", "") == before


def _received(pod: Pod) -> int:
    with entered(pod.netns):
        done = subprocess.run(
            ["ip", "-j", "-s", "link", "show", "eth0"], capture_output=True, text=True, check=True
        )
    (link,) = json.loads(done.stdout)
    return int(link["stats64"]["rx"]["packets"])


def test_a_delay_line_has_no_such_place(cluster: Cluster, tmp_path: Path) -> None:
    profile = profile_file(tmp_path, "delay_ms: 20")
    words = ("profile", "apply", profile, "-l", "pod=client-0", "--backend", "nfqueue", "--at", "host")
    done = cluster.ztprobe(*words, fails=5)
    assert "the delay line stands where the node forwards" in done.stderr


TREES = {
    "htb": (
        "qdisc add dev eth0 root handle 7: htb default 20 r2q 30",
        "class add dev eth0 parent 7: classid 7:1 htb rate 50mbit ceil 60mbit burst 20k",
        "class add dev eth0 parent 7:1 classid 7:10 htb rate 8mbit ceil 60mbit prio 1",
        "class add dev eth0 parent 7:1 classid 7:20 htb rate 20mbit quantum 3000",
        "qdisc add dev eth0 parent 7:10 handle 8: tbf rate 6mbit burst 9000 limit 90000",
        "qdisc add dev eth0 parent 7:20 handle 9: pfifo limit 77",
        "filter add dev eth0 parent 7: protocol ip prio 5 u32 match ip dst 10.99.0.1/32 flowid 7:10",
        "filter add dev eth0 parent 7: protocol ip prio 5 u32 match ip dport 99 0xffff flowid 7:20",
        "filter add dev eth0 parent 7: protocol ip prio 9 u32 match ip tos 16 0xff classid 7:20",
    ),
    "tbf": ("qdisc add dev eth0 root handle 7: tbf rate 8mbit burst 9000 limit 90000",),
}
NETEM_TREES = {
    "flower": (
        "qdisc add dev eth0 root handle 7: htb default 20",
        "class add dev eth0 parent 7: classid 7:10 htb rate 8mbit",
        "class add dev eth0 parent 7: classid 7:20 htb rate 20mbit",
        "qdisc add dev eth0 parent 7:10 handle 8: netem delay 20ms loss 1% limit 500",
        "filter add dev eth0 parent 7: protocol ip prio 5 flower dst_ip 10.99.0.1 ip_proto tcp classid 7:10",
        "filter add dev eth0 parent 7: prio 9 matchall classid 7:20",
    ),
    "netem": ("qdisc add dev eth0 root handle 7: netem delay 20ms loss gemodel 1% 10% rate 10mbit",),
    "prio": (
        "qdisc add dev eth0 root handle 7: prio bands 4",
        "qdisc add dev eth0 parent 7:3 handle 8: fq_codel limit 300",
        "filter add dev eth0 parent 7: protocol ip prio 5 handle 3 fw classid 7:3",
    ),
}


@pytest.mark.parametrize(
    "name",
    [*TREES, *(pytest.param(name, marks=pytest.mark.optional) for name in NETEM_TREES)],
)
def test_a_tree_is_put_back_as_it_was(cluster: Cluster, name: str) -> None:
    if name in NETEM_TREES and not netem_supported():
        pytest.skip("a kernel without netem is likely to lack these qdiscs and filters too")
    pod = cluster.pods["client-0"]
    for command in (TREES | NETEM_TREES)[name]:
        tc(pod.netns, command)
    before = tree(pod)
    lease = cluster.profile("apply", "net5", "-l", "pod=client-0", "--replace")
    assert [i["replaces"] for i in lease["interfaces"]] == [before.split()[1]]
    assert tc(pod.netns, "class show dev eth0").count("htb") == 0
    cluster.kill_both_keepers(lease["lease"])
    done = cluster.ztprobe("clean")
    assert f"{before.split()[1]} put back on eth0 of fl/client-0\n" in done.stdout + done.stderr
    assert tree(pod) == before


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        (
            (
                "qdisc add dev eth0 root handle 7: htb default 20",
                "class add dev eth0 parent 7: classid 7:20 htb rate 8mbit",
                "filter add dev eth0 parent 7: protocol ip prio 5 u32 match u32 0 0 flowid 7:20"
                " action mirred egress redirect dev lo",
            ),
            "a u32 filter of it has actions",
        ),
        pytest.param(
            ("qdisc add dev eth0 root handle 7: netem delay 20ms 5ms distribution normal",),
            "its netem has jitter, and the kernel never shows by which distribution table",
            marks=pytest.mark.optional,
        ),
        pytest.param(
            (
                "qdisc add dev eth0 root handle 7: red limit 400000 min 30000 max 90000 avpkt 1000"
                " burst 55 bandwidth 10mbit",
            ),
            "it has a qdisc of kind red",
            marks=pytest.mark.optional,
        ),
    ],
)
def test_a_tree_that_cannot_be_read_is_left_alone(
    cluster: Cluster,
    commands: tuple[str, ...],
    reason: str,
) -> None:
    pod = cluster.pods["client-0"]
    if "u32" not in reason and not netem_supported():
        pytest.skip("no netem (CONFIG_NET_SCH_NETEM)")
    for command in commands:
        tc(pod.netns, command)
    before = tree(pod)
    done = cluster.ztprobe("profile", "apply", "net5", "-l", "pod=client-0", "--replace", fails=5)
    assert f"which could not be put back as it was ({reason}" in done.stderr
    assert tree(pod) == before


@pytest.mark.optional
def test_netem_at_either_end(cluster: Cluster, at: str, tmp_path: Path) -> None:
    if not netem_supported():
        pytest.skip("no netem (CONFIG_NET_SCH_NETEM)")
    profile = profile_file(tmp_path, "delay_ms: 300\njitter_ms: 60\ndistribution: normal")
    words = ("-l", "pod=client-0", "--direction", "both", "--at", at)
    lease = cluster.profile("apply", profile, *words)
    assert lease["backend"] == "netem"
    (verdict,) = cluster.profile("verify", "--probes", "600")
    assert verdict["passed"], verdict["problems"]
