"""Policies put in force while connections stand: what is open goes on, what is forbidden stops."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.kernel import workload_stub
from tests.kernel.workload_stub import finish, up
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.runtime.local import firewall


def connected(source: Pod, target: Pod, port: int) -> socket.socket:
    with entered(source.netns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(2)
    sock.connect((target.address, port))
    return sock


def can_connect(source: Pod, target: Pod, port: int) -> bool:
    try:
        connected(source, target, port).close()
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    return True


def test_policies_come_while_connections_stand(tmp_path: Path) -> None:
    with up(workload_stub.runtime(tmp_path, level=0, later_level=1)) as runtime:
        runtime.secure()
        runtime.start_server()
        assert all(proof.passed for proof in runtime.prove().network_policy)
        client, server = runtime.clients[0], runtime.server
        with entered(server.netns):
            listener = socket.create_server((server.address, 50060))
        # No policy allows its port: it goes on because it is known from before, whoever speaks first.
        standing = connected(client, server, 50060)
        accepted, _ = listener.accept()
        assert can_connect(client, server, 50061) and can_connect(runtime.outsider, server, 50051)
        runtime.switch_level()
        found = runtime.prove_switch()
        assert [proof.passed for proof in found.network_policy] == [True]
        assert found.network_policy[0].name == "forbidden: outsider -> fl-server:50051/tcp"
        accepted.sendall(b"from the server")
        standing.settimeout(2)
        assert standing.recv(64) == b"from the server"
        assert not can_connect(client, server, 50061)
        assert not can_connect(runtime.outsider, server, 50051)
        dropped = {(flow.source, flow.port) for flow in firewall.dropped(runtime.node_netns)}
        assert dropped == {(client.address, 50061), (runtime.outsider.address, 50051)}
        (change,) = runtime.facts()["object_changes"]
        assert {one["kind"] for one in change["objects"]} == {"Namespace", "Pod", "NetworkPolicy"}
        for sock in (standing, accepted, listener):
            sock.close()
        finish(runtime)


def test_policies_are_lifted_again(tmp_path: Path) -> None:
    with up(workload_stub.runtime(tmp_path, level=1, later_level=0)) as runtime:
        runtime.secure()
        runtime.start_server()
        assert not can_connect(runtime.outsider, runtime.server, 50051)
        runtime.switch_level()
        (proof,) = runtime.prove_switch().network_policy
        assert proof.passed and proof.name.startswith("open without policy: outsider")
        finish(runtime)
