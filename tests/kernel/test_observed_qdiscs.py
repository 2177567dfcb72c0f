"""What the agent says of qdiscs at pods' interfaces, against what `tc` says of them."""

from __future__ import annotations

import json
import subprocess

from tests.kernel.bridged import Node
from tests.kernel.test_agent import transfer
from tests.kernel.test_emulation import node
from ztprobe.agent.observed_qdiscs import ObservedQdiscs
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod

__all__ = ("node",)  # a fixture

# A bucket of less than what is sent at once, so that it holds packets back.
TBF = ("root", "tbf", "rate", "80mbit", "burst", "5000", "limit", "2000000")


def tc(pod: Pod, *words: str) -> str:
    with entered(pod.netns):
        return subprocess.run(["tc", *words], check=True, capture_output=True, text=True).stdout


def counted(pod: Pod, device: str) -> dict[str, int]:
    """By tc itself."""
    found = json.loads(tc(pod, "-s", "-j", "qdisc", "show", "dev", device))
    one = next(each for each in found if each.get("root") or each.get("parent") is None)
    return {name: int(one[name]) for name in ("packets", "drops", "overlimits")}


def test_only_what_a_qdisc_did_since_the_pod_was_known_is_counted(node: Node) -> None:
    a, b = node.pods
    tc(a, "qdisc", "add", "dev", "eth0", *TBF)
    transfer(a, b)
    observed = ObservedQdiscs()
    before = counted(a, "eth0")
    assert before["packets"] > 10 and before["overlimits"] > 0
    for pod in node.pods:
        observed.add(pod)
    transfer(a, b)
    after = counted(a, "eth0")
    found = observed.read()
    expected = {name: after[name] - before[name] for name in after}
    assert found["pod-a"] == {"interface": "eth0", "kind": "tbf", **expected}
    assert found["pod-b"] is not None and found["pod-b"]["kind"] == "noqueue"
    # Another one in its place counts from nothing.
    tc(a, "qdisc", "del", "dev", "eth0", "root")
    tc(a, "qdisc", "add", "dev", "eth0", *TBF)
    transfer(a, b)
    assert observed.read()["pod-a"] == {"interface": "eth0", "kind": "tbf", **counted(a, "eth0")}


def test_a_pod_that_was_left_keeps_what_was_read_last_and_its_loopback_counts(node: Node) -> None:
    a, b = node.pods
    observed = ObservedQdiscs()
    observed.add(a)
    tc(a, "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "8mbit", "burst", "5000", "limit", "9000")
    observed.leave(a)
    tc(a, "qdisc", "del", "dev", "lo", "root")
    transfer(a, b)
    found = observed.read()["pod-a"]
    assert found is not None and found["kind"] == "noqueue"
    assert [(one["interface"], one["kind"]) for one in found["others"]] == [("lo", "tbf")]
    observed.add(a)
    again = observed.read()["pod-a"]
    assert again is not None and "others" not in again
