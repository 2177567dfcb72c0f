"""A run on several nodes: what their agents do in its pods, and what the nodes tell put together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.test_cluster_traced import listed
from ztprobe.agent.pod_access import Arrival, PathProbes
from ztprobe.agent.pod_access_calls import POD_ACCESS, PodAccessCaller
from ztprobe.agent.pod_access_host import POD_ACCESS_CALLS, PodAccessHost
from ztprobe.agent.service.node_session import NodeSession, process_number
from ztprobe.conformance import udp_probe
from ztprobe.errors import PreflightError, UsageError
from ztprobe.experiment.nodes.path import clock_offsets, measured_path
from ztprobe.kubernetes.agents import AgentAddress
from ztprobe.pods.model import Pod
from ztprobe.profile.model import Profile
from ztprobe.runtime import attempts
from ztprobe.runtime.attempts import REFUSED, connect
from ztprobe.runtime.cluster.agent_nodes import AgentNodes, RunAgents
from ztprobe.runtime.local.certificates import Authority, spiffe_id
from ztprobe.runtime.tls_attempts import TlsWay, tls_attempts

HERE = Path("/proc/self/ns/net")


def pod(name: str, node: str = "a") -> Pod:
    return Pod(
        name=name,
        namespace="fl",
        address="127.0.0.1",
        netns=HERE,
        netns_inode=1,
        interface="lo",
        host_interface="",
        node_netns=HERE,
        uid=f"uid-{name}",
        node=node,
    )


class Carried(PodAccessCaller):
    """An agent's access to pods, by way of JSON."""

    def __init__(self, *pods: Pod) -> None:
        self.host = PodAccessHost({one.name: one for one in pods})

    def _ask(self, call: str, **arguments: Any) -> Any:
        said = json.loads(json.dumps(arguments))
        return json.loads(json.dumps(POD_ACCESS_CALLS[call](self.host, said)))


@pytest.fixture
def own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods' networks are this process's, which needs no rights."""
    monkeypatch.setattr(attempts, "entered", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(udp_probe, "entered", lambda _: contextlib.nullcontext())


class TlsServer:
    """Takes clients of one authority, as a sidecar does, and speaks first."""

    def __init__(self, directory: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
        context.load_verify_locations(directory / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                with (
                    connection,
                    contextlib.suppress(OSError),
                    self._context.wrap_socket(connection, server_side=True) as tls,
                ):
                    tls.sendall(b"settings")
                    tls.recv(1)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def way(tmp_path: Path, own_network: None) -> Iterator[TlsWay]:
    ours, theirs = Authority("ours"), Authority("theirs")
    for directory, authority, account, names in (
        ("server", ours, "fl-server", ["fl-server"]),
        ("client", ours, "fl-client", []),
        ("foreign", theirs, "fl-client", []),
    ):
        authority.issue(tmp_path / directory, "fl", account, names)
    server = TlsServer(tmp_path / "server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = int(free.getsockname()[1])
    yield TlsWay(
        client=pod("fl-client-0"),
        server=pod("fl-server"),
        port=server.port,
        application_port=nobody,
        service_name="fl-server",
        server_identity=spiffe_id("fl", "fl-server"),
        own=tmp_path / "client",
        foreign={"another authority's": tmp_path / "foreign"},
    )
    server.close()


@pytest.mark.parametrize("carried", [False, True], ids=["here", "by an agent"])
def test_handshakes_are_tried_here_or_by_an_agent_without_its_seeing_a_key(
    way: TlsWay, carried: bool
) -> None:
    access = Carried(way.client)
    if carried:
        way = dataclasses.replace(way, networks=access)
    for attempt in tls_attempts(way):
        proof = attempt.judged(attempt.run())
        assert proof.passed, proof
    assert access.host._streams == {}


@pytest.mark.usefixtures("own_network")
def test_what_is_listened_on_by_an_agent_is_heard_until_it_stops() -> None:
    client = pod("fl-client-0")
    access = Carried(client)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with access.listening(client, port) as take:
        assert connect(client, "127.0.0.1", port, 1.0, access) == "connected"
        take()
    assert connect(client, "127.0.0.1", port, 1.0, access) == REFUSED
    with pytest.raises(OSError, match="refused"):
        access.ask(client, "127.0.0.1", port, b"?", 1.0)


def test_an_agent_acts_on_no_other_pods_than_it_has_placed() -> None:
    access = Carried(pod("fl-client-0"))
    with pytest.raises(UsageError, match="has found no such pod"):
        access.dial(pod("somebody"), "127.0.0.1", 1, 0.1)
    with pytest.raises(UsageError, match="has found no such pod"):
        access.sysctls(pod("somebody"))
    assert access.open_gate([os.getpid()], "ztprobe-gate") is None  # in no pod at all
    assert access.resolvers([os.getpid()]) == []


def test_every_call_has_an_answer() -> None:
    assert set(POD_ACCESS_CALLS) == POD_ACCESS


def test_what_clocks_differ_by_is_what_directions_differ_by() -> None:
    nodes = ("a", "b", "a")
    took = {(1, 0): [-2_000, -1_000, 0], (0, 1): [3_000, 4_000, 5_000], (2, 0): [9, 9], (0, 2): [7, 7]}
    assert clock_offsets(nodes, took) == {"a": 0, "b": 2_500}
    assert clock_offsets(nodes, {(1, 0): [], (0, 1): [5]}) == {"a": 0, "b": 0}


class Ahead(Carried):
    """Of a node whose wall clock is ahead, as is what it sends."""

    def __init__(self, ahead_ns: Mapping[int, int], own: int, *pods: Pod) -> None:
        super().__init__(*pods)
        self._ahead_ns, self._own = ahead_ns, own

    def probe_path(self, share: PathProbes) -> dict[int, list[Arrival]]:
        found = super().probe_path(share)
        return {
            number: [
                (sender, sent + self._ahead_ns[sender], got + self._ahead_ns[number])
                for sender, sent, got in arrived
            ]
            for number, arrived in found.items()
        }


@pytest.mark.usefixtures("own_network")
def test_a_path_between_nodes_is_measured_whatever_their_clocks_say() -> None:
    ahead_ns = {0: 0, 1: 3_000_000_000}
    pods = {"a": pod("fl-server", "a"), "b": pod("fl-client-0", "b")}
    sessions = {
        node: cast(
            NodeSession,
            SimpleNamespace(client=Ahead(ahead_ns, number, one), pods={one.name: one}, name=node),
        )
        for number, (node, one) in enumerate(pods.items())
    }
    measured, offsets = measured_path(sessions, "fl-server", ["fl-client-0"], Profile(name="none"))
    assert [str(one) for one in measured.directions] == [
        "fl-client-0 -> fl-server",
        "fl-server -> fl-client-0",
    ]
    assert all(one.received >= 0.9 * one.sent for one in measured.directions)
    assert offsets["b"] == pytest.approx(3e9, abs=20e6)
    assert all(abs(one.mean_ms) < 20 for one in measured.directions)
    assert measured.rates == ()


def test_a_pod_on_a_node_without_an_agent_is_named(tmp_path: Path) -> None:
    agents = RunAgents(addresses=(AgentAddress(node="node-a", address="10.0.0.1:7443"),), tls=None)
    nodes = AgentNodes(agents, tmp_path, run="ab12cd")
    objects = {name: listed(name) for name in ("fl-server", "fl-client-0")}
    objects["fl-server"]["spec"]["nodeName"] = "node-a"
    nodes.look_at(objects, 2)
    objects["fl-client-0"]["spec"]["nodeName"] = "node-b"
    with pytest.raises(PreflightError) as raised:
        nodes.look_at(objects, 2)
    assert "fl-client-0 on node-b: no agent was asked there (agents: node-a)" in str(raised.value)


def test_processes_of_two_nodes_have_numbers_of_their_own() -> None:
    assert process_number(4711, 0) == 4711
    assert len({process_number(pid, node) for pid in (1, 4711) for node in range(3)}) == 6
