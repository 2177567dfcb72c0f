"""Pods with a user namespace of their own (`hostUsers: false`): root there is nobody on the node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.cluster import kube_node

pytestmark = pytest.mark.cluster


def test_a_rate_on_a_pod_with_users_of_its_own(tmp_path: Path) -> None:
    with kube_node(tmp_path) as node:
        node.run("fl-server-0", {"app": "fl-server"}, 10, layout="v2-systemd")
        pod = node.run("fl-client-0", {"app": "fl-client"}, 11, layout="v2-systemd", users=True)
        own = Path(f"/proc/{pod.pause.pid}/ns/user").stat().st_ino
        assert own != os.stat("/proc/self/ns/user").st_ino
        lease = node.profile("apply", "net5", "-l", "app=fl-client", "--direction", "both")
        try:
            assert lease["pods"] == ["fl/fl-client-0"]
            assert set(node.qdiscs()) == {"fl-client-0", "fl-client-0^"}
            (verdict,) = node.profile("verify", "--probes", "300")
            assert verdict["passed"], verdict["problems"]
        finally:
            node.profile("clear", lease["lease"])
        assert node.qdiscs() == {}
