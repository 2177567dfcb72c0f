"""netem by the agent's service, as a DaemonSet runs it, on pods as kubelet and a CNI plugin make them.

The service is in a container's cgroup of its own and is called over mutual TLS; it finds the pods by their
UIDs. No API server runs: what it would say of pods is said here.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.kernel.agent_service import certificates, service
from tests.kernel.bridged import delays_ms, wait_until_reachable
from tests.kernel.cluster import NODE, KubeNode
from tests.kernel.live_run import PATIENCE
from tests.kernel.running_pod import LAYOUT
from tests.kernel.test_agent_service import client
from ztprobe.agent.interface import LeaseRequest
from ztprobe.agent.service.client import AgentClient
from ztprobe.conformance.verification import verify
from ztprobe.emulation.netem import netem_supported
from ztprobe.kernelnet.netns import entered
from ztprobe.leases.records import Lease
from ztprobe.pods.model import NOWHERE, Pod
from ztprobe.profile.model import Profile, load_profile

NARROW = Profile(name="narrow", delay_ms=50, loss_pct=1, rate_mbit=20)
NAMES = ("server", "client-0", "client-1")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[KubeNode]:
    """With pods, and a process of its own, as a node has many."""
    made = KubeNode(tmp_path)
    with entered(made.netns):
        kubelet = subprocess.Popen(["sleep", "infinity"])
    try:
        for number, name in enumerate(NAMES, 10):
            made.bring_up(name, str(uuid.uuid4()), number, layout=LAYOUT)
        yield made
    finally:
        kubelet.kill()
        kubelet.wait()
        made.down()


@pytest.fixture
def container(node: KubeNode) -> Path:
    """The cgroup of the agent's container."""
    (group,) = node.container_cgroups(str(uuid.uuid4()), LAYOUT)
    return group


def named_by_the_api(node: KubeNode) -> list[Pod]:
    """What an API server knows of the pods: nothing of their networks but the address."""
    return [
        Pod(
            name=pod.name,
            namespace="fl",
            address=pod.address,
            netns=NOWHERE,
            netns_inode=0,
            interface="",
            host_interface="",
            node_netns=NOWHERE,
            uid=pod.uid,
            node=NODE,
        )
        for pod in node.pods.values()
    ]


def netem_anywhere(node: KubeNode, pods: Sequence[Pod]) -> list[str]:
    """Every netem qdisc of the pods and of the node."""
    found = []
    for place in (node.netns, *(pod.netns for pod in pods)):
        with entered(place):
            shown = subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True, check=True)
        found += [line for line in shown.stdout.splitlines() if "netem" in line]
    return found


def begun(agent: AgentClient, profile: Profile, pod: Pod) -> Lease:
    """A lease that the agent keeps on what leaves the pod."""
    lease = agent.plan_lease(LeaseRequest(profile=profile, pods=(pod,), lasts_s=3600, namespace="fl"))
    agent.begin_lease(lease)
    return lease


@pytest.mark.optional
def test_what_it_puts_on_pods_is_measured_and_ended_by_the_next_agent(
    node: KubeNode, container: Path, tmp_path: Path
) -> None:
    if not netem_supported():
        pytest.skip("no netem (CONFIG_NET_SCH_NETEM)")
    tls = certificates(tmp_path / "tls")
    joins = ("sh", "-c", f'echo $$ > {container}/cgroup.procs && exec "$0" "$@"')
    with service(
        tls["agent"], tmp_path / "agent", "--end-leases", ztprobe_state=node.state, before=joins
    ) as before:
        agent = client(before.address, tls["collector"], tmp_path, probes=False)
        pods = agent.place(named_by_the_api(node)).pods
        server, first, second = pods
        for pod in (first, second):
            wait_until_reachable(pod, server)
        bare_ms = statistics.median(delays_ms(first, server, count=61, gap_s=0.002))

        leases = [begun(agent, load_profile("net2"), first), begun(agent, NARROW, second)]
        assert [lease.backend for lease in leases] == ["netem", "netem"]
        delays = sorted(delays_ms(first, server, count=601, gap_s=0.003))
        assert len(delays) == 601
        assert statistics.fmean(delays) == pytest.approx(80 + bare_ms, abs=4)  # 4.9 standard errors
        assert statistics.stdev(delays) == pytest.approx(20, rel=0.12)
        normal = statistics.NormalDist(80 + bare_ms, 20)
        distance = max(abs((i + 0.5) / len(delays) - normal.cdf(value)) for i, value in enumerate(delays))
        assert distance < 1.95 / math.sqrt(len(delays))  # Kolmogorov-Smirnov, 99.9 %
        back_ms = statistics.median(delays_ms(server, first, count=61, gap_s=0.003))
        assert back_ms < 5 * PATIENCE  # what enters the pod is left alone
        verdict = verify(leases[1], leases, pods, probes=600)
        assert verdict.passed, verdict.problems
        measured = verdict.measured.as_dict()
        assert measured["rate_mbit"] == pytest.approx(20, rel=0.03)

        agent.add_pod(server)
        agent.apply(load_profile("net4"), seed=1)  # a run's own profile: it has no lease
        there_ms = statistics.median(delays_ms(server, first, count=61, gap_s=0.003))
        assert there_ms == pytest.approx(150 + bare_ms, abs=0.5 * PATIENCE)

        (container / "cgroup.kill").write_text("1")  # as runc does it: nobody has a moment to undo anything
        before.process.wait()
        agent._connection.patience_s = 0
        agent.close()
    assert len(netem_anywhere(node, pods)) == 3
    assert statistics.median(delays_ms(server, first, count=31, gap_s=0.003)) > 149

    with service(tls["agent"], tmp_path / "agent", ztprobe_state=node.state, before=joins) as after:
        assert netem_anywhere(node, pods) == []
        assert not list((node.state / "leases").glob("*"))
        assert "a profile of run test was left on fl/server: taken off" in after.end()
    for sender, receiver in ((first, server), (second, server), (server, first)):
        assert statistics.median(delays_ms(sender, receiver, count=31, gap_s=0.003)) < 5 * PATIENCE
