"""Policies put in force while connections stand: what is open goes on, what is forbidden stops."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

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


def nothing() -> None:
    """Nobody wants to know of new processes."""


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
        seen = runtime.switch_level(nothing)
        (proof,) = seen.enforcement.network_policy
        assert proof.passed and proof.name == "forbidden: outsider -> fl-server:50051/tcp"
        assert seen.sidecars_ns is None and seen.policies_ns is not None
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
        (proof,) = runtime.switch_level(nothing).enforcement.network_policy
        assert proof.passed and proof.name.startswith("open without policy: outsider")
        finish(runtime)


@pytest.mark.parametrize("later", [2, 3])
def test_sidecars_come_while_connections_stand(tmp_path: Path, later: int) -> None:
    with up(workload_stub.runtime(tmp_path, level=0, later_level=later)) as runtime:
        runtime.secure()
        runtime.start_server()
        assert all(proof.passed for proof in runtime.prove().network_policy)
        client, server = runtime.clients[0], runtime.server
        standing = connected(client, server, 50051)
        assert standing.recv(5) == b"hello"
        started: list[set[str]] = []
        processes = runtime.source.processes

        def note() -> None:
            started.append({pod for pod, name in processes(runtime.pods).values() if name == "proxy"})

        seen = runtime.switch_level(note)
        assert started == [{"fl-client-0", "fl-client-1"}, {"fl-client-0", "fl-client-1", "fl-server"}]
        proofs = (*seen.enforcement.mtls, *seen.enforcement.network_policy)
        assert [proof.passed for proof in proofs] == [True] * (5 if later == 2 else 6), proofs
        assert seen.sidecars_ns is not None and (seen.policies_ns is None) is (later == 2)
        # The connection from before goes on; a new one in plain text does not reach the application.
        standing.sendall(b"more")
        assert standing.recv(1) == b""  # the stub closes whatever it is told but "bye"
        fresh = connected(client, server, 50051)
        fresh.sendall(b"plain text")
        assert not fresh.recv(64).startswith(b"hello")
        for sock in (standing, fresh):
            sock.close()
        finish(runtime)  # the clients connect where the file says by now
        lines = [json.loads(line) for line in runtime.source.log(server, "proxy").read_text().splitlines()]
        served = [line for line in lines if line.get("peer", "").startswith(("10.244.0.3:", "10.244.0.4:"))]
        assert {line["peer"].partition(":")[0] for line in served if line.get("tls") == "TLSv1.3"} == {
            "10.244.0.3",
            "10.244.0.4",
        }
        assert runtime.facts()["certificates"]
