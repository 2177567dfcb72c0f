"""The agent as a service: mutual TLS, a collector that goes and comes, an agent that is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.kernel.agent_service import Service, Wire, certificates, least_privilege, service
from tests.kernel.bridged import Node
from tests.kernel.live_run import Cluster, cluster
from tests.kernel.test_agent import ME, SENT_BYTES, of_port, sent_bytes, tables, transfer
from tests.kernel.test_emulation import node
from ztprobe.agent.interface import Account, LeaseRequest
from ztprobe.agent.service import wire
from ztprobe.agent.service.client import AgentClient, Connection
from ztprobe.agent.service.privileges import lacking
from ztprobe.agent.service.wire import TlsFiles
from ztprobe.errors import EnforcementError, PreflightError, ZtprobeError
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.profile.model import Profile
from ztprobe.rundir.batches import BATCHES_DIR
from ztprobe.runtime.local.certificates import Authority

__all__ = ("cluster", "node")  # fixtures

SLOW = Profile(name="slow", rate_mbit=20)


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, TlsFiles]:
    return certificates(tmp_path / "tls")


@pytest.fixture
def served(tls: dict[str, TlsFiles], tmp_path: Path) -> Iterator[Service]:
    with service(tls["agent"], tmp_path / "agent") as made:
        yield made


def client(address: str, tls: TlsFiles, directory: Path, *, probes: bool = True) -> AgentClient:
    return AgentClient(
        Connection(address, tls, patience_s=20), directory / BATCHES_DIR, run="test", probes=probes
    )


def begin(agent: AgentClient, node: Node) -> None:
    agent.prepare()
    for pod in node.pods:
        agent.add_pod(pod)
    agent.start()
    agent.watch(ME)


def qdiscs(node: Node) -> str:
    said = ""
    for pod in node.pods:
        with entered(pod.netns):
            shown = subprocess.run(["tc", "qdisc", "show", "dev", "eth0"], capture_output=True, text=True)
        said += shown.stdout
    return said


def wait_for(what: str, condition: object, limit_s: float = 20.0) -> None:
    assert callable(condition)
    until_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until_s, f"not within {limit_s:.0f} s: {what}"
        time.sleep(0.05)


def status(address: str, tls: TlsFiles) -> dict[str, object]:
    command = [sys.executable, "-m", "ztprobe", "agent", "status", address, "--json"]
    command += ["--cert", str(tls.certificate), "--key", str(tls.key), "--ca", str(tls.authority)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO_DIR)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_collector_elsewhere_gets_what_a_run_directory_here_would(
    node: Node, served: Service, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    first, second = node.pods
    with client(served.address, tls["collector"], tmp_path) as agent:
        begin(agent, node)
        port = transfer(first, second)
        with entered(first.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"nobody", (second.address, 9))
        assert agent.status().problem is None
        said = status(served.address, tls["collector"])
        (session,) = said["sessions"]  # type: ignore[misc]
        assert session["pods"] == ["fl/pod-a", "fl/pod-b"]
        assert 1 << 20 < session["memory"]["kernel_maps_bytes"] <= 64 << 20
        # A second one would watch the same pods with other names.
        with pytest.raises(EnforcementError, match="at work for run test since"):
            client(served.address, tls["collector"], tmp_path / "other")
        account = agent.stop()
    assert not any(account.loss.values()), account.loss
    assert account.coverage == 1
    found = tables(tmp_path, account)
    for pod in node.pods:
        assert sent_bytes(found["bursts"], pod.name, port) == SENT_BYTES
        setups = found["packets"][found["packets"]["kind"] == "setup"]
        assert (of_port(setups, pod.name, port)["tcp_flags"] & 2).astype(bool).sum() == 2
    assert set(found["bursts"]["process"]) >= {"pod-a/test"}
    # In the words of the agent's kernel, whatever runs the collector.
    nobody = found["drops"][found["drops"]["reason"] == "NO_SOCKET"]
    assert set(nobody["location"]) <= set(account.drop_places.values())
    assert all(name.startswith(("__udp4", "udp")) for name in nobody["location"])
    assert len(nobody) == 1
    assert served.end() == ""
    assert not served.state.exists()


def test_nobody_gets_in_without_the_right_certificate(
    served: Service, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    def refusal(connection: Connection) -> str:
        with contextlib.closing(connection), pytest.raises(PreflightError) as raised:
            connection.status()
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "does not answer" in refusal(Connection(served.address, None, patience_s=0))
    others = certificates(tmp_path / "others", Authority("another"))["collector"]
    forged = TlsFiles(certificate=others.certificate, key=others.key, authority=tls["collector"].authority)
    assert "not to a certificate like ours" in refusal(Connection(served.address, forged, patience_s=0))
    assert "does not let us in" in refusal(Connection(served.address, tls["stranger"], patience_s=0))
    # The library's own client with the authority alone: it knows the agent, the agent does not know it.
    authority = tls["collector"].authority.read_bytes()
    credentials = grpc.ssl_channel_credentials(authority)
    options = (("grpc.ssl_target_name_override", wire.SERVER_NAME),)
    with grpc.secure_channel(served.address, credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(f"/{wire.SERVICE}/{wire.CALL}")(b'{"call": "agent_status"}', timeout=5)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    # Nor does a collector speak to an agent that only claims to be one.
    with service(tls["stranger"], tmp_path / "false") as false:
        assert "does not answer" in refusal(Connection(false.address, tls["collector"], patience_s=0))
    with contextlib.closing(Connection(served.address, tls["collector"])) as connection:
        assert connection.status()["sessions"] == []


def test_without_certificates_it_listens_on_a_socket_for_root_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ztprobe", "agent", "serve", "--state", str(tmp_path / "a"), "--listen"]
    for address in ("0.0.0.0:0", "127.0.0.1:0"):
        done = subprocess.run([*command, address], capture_output=True, text=True, cwd=REPO_DIR, check=False)
        assert done.returncode == 2
        assert "it needs --cert, --key and --client-ca" in done.stderr
        assert done.stderr.count("\n") == 1
    path = tmp_path / "agent.sock"
    process = subprocess.Popen([*command, f"unix:{path}"], stdout=subprocess.PIPE, text=True, cwd=REPO_DIR)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(f"listens on unix:{path}\n")
        assert path.stat().st_mode & 0o777 == 0o600
        with contextlib.closing(Connection(f"unix:{path}", None)) as connection:
            assert connection.status()["leases"] == []
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_a_collector_that_was_away_has_missed_nothing(
    node: Node, served: Service, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    with Wire(served.port) as line, client(line.address, tls["collector"], tmp_path) as agent:
        begin(agent, node)
        ports = [transfer(*node.pods)]
        line.cut()
        ports += [transfer(*node.pods) for _ in range(5)]
        wait_for("events in the queue", lambda: list(served.state.glob("*/queue/*.bursts.*")))
        ports += [transfer(*node.pods) for _ in range(5)]
        line.mend()
        ports.append(transfer(*node.pods))
        account = agent.stop()
    assert not any(account.loss.values()), account.loss
    bursts = tables(tmp_path, account)["bursts"]
    for port in ports:
        assert sent_bytes(bursts, "pod-a", port) == SENT_BYTES
        assert sent_bytes(bursts, "pod-b", port) == SENT_BYTES


def received(directory: Path, account: Account) -> int:
    """Events that arrived, of all kinds, before they become tables."""
    from ztprobe.rundir.batches import read_parts

    assert account.hooks
    parts = list(read_parts(directory / BATCHES_DIR))
    return sum(rows.size for part in parts for rows in part.rows.values())


def test_what_the_queue_could_not_hold_is_said_to_the_event(
    node: Node, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    with (
        service(tls["agent"], tmp_path / "agent", "--queue", "1") as served,
        Wire(served.port) as line,
        client(line.address, tls["collector"], tmp_path) as agent,
    ):
        begin(agent, node)
        transfer(*node.pods)
        line.cut()

        def full() -> bool:
            for _ in range(100):
                transfer(*node.pods)
            return bool(list(served.state.glob("*/queue/lost.json")))

        wait_for("a full queue", full, 60)
        size = sum(path.stat().st_size for path in served.state.glob("*/queue/*.arrow"))
        assert size <= 1 << 20
        line.mend()
        account = agent.stop()
    assert account.loss["queue_full"] > 0
    assert account.coverage < 1
    assert received(tmp_path, account) + account.loss["queue_full"] == account.events_seen
    log = [entry for entry in account.loss_log if entry["channel"] == "queue_full"]
    assert sum(entry["count"] for entry in log) == account.loss["queue_full"]
    assert all(entry["from_ns"] < entry["to_ns"] and entry["ring"] for entry in log)


def test_an_agent_that_was_killed_says_so_and_leaves_no_profile(
    node: Node, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    state = tmp_path / "agent"
    with service(tls["agent"], state) as before, Wire(before.port) as line:
        agent = client(line.address, tls["collector"], tmp_path)
        with agent:
            begin(agent, node)
            agent.apply(SLOW, seed=1)
            assert "tbf" in qdiscs(node)
            port = transfer(*node.pods)
            line.cut()  # what happened last has to wait for the next agent
            os.kill(before.process.pid, signal.SIGKILL)
            wait_for("the profile is off", lambda: "tbf" not in qdiscs(node))
            with service(tls["agent"], state) as after:
                line.to_port = after.port
                line.mend()
                wait_for("the problem is said", lambda: agent.status().problem is not None)
                problem = agent.status().problem
                assert problem is not None
                assert "was started again: what happened since then was not seen" in problem
                wait_for("the rest has come", agent._complete.is_set)
                with pytest.raises(EnforcementError, match="ended unexpectedly"):
                    agent.stop()
                found = tables(tmp_path, Account())
                # But for a last segment that is too small to be told from a control frame.
                assert 0 <= SENT_BYTES - sent_bytes(found["bursts"], "pod-a", port) < 256
                agent.close()
                assert "was left on" not in after.end()  # the one that was killed had time to undo it
    assert not state.exists()


def test_a_collector_that_never_returns_is_given_up(
    node: Node, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    with service(tls["agent"], tmp_path / "agent", "--orphans-after", "2") as served:
        with Wire(served.port) as line:
            agent = client(line.address, tls["collector"], tmp_path, probes=False)
            begin(agent, node)
            agent.apply(SLOW, seed=1)
        wait_for("the profile is off", lambda: "tbf" not in qdiscs(node), 30)
        said = status(served.address, tls["collector"])
        assert said["sessions"] == []
        agent._connection.close()
        assert "nobody asked the agent for 2 s, so it ended run test" in served.end()


def test_what_a_killed_container_left_on_pods_the_next_agent_takes_off(
    node: Node, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    with service(tls["agent"], tmp_path / "agent") as before:
        agent = client(before.address, tls["collector"], tmp_path, probes=False)
        begin(agent, node)
        agent.apply(SLOW, seed=1)
        (session,) = before.state.glob("*/session.json")
        worker = json.loads(session.read_text())["process"]["pid"]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in (worker, before.process.pid):
                os.kill(pid, number)
        before.process.wait()
        agent._connection.patience_s = 0
        agent.close()
    assert "tbf" in qdiscs(node)
    with service(tls["agent"], tmp_path / "agent") as after:
        assert "tbf" not in qdiscs(node)
        assert "a profile of run test was left on fl/pod-a, fl/pod-b: taken off" in after.end()
    assert not before.state.exists()


def test_asked_to_go_it_ends_leases_and_profiles(
    node: Node, cluster: Cluster, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    cluster.profile("apply", "net5", "-l", "app=client", "--for", "5m")
    assert cluster.marks()
    with service(tls["agent"], tmp_path / "a", "--end-leases", ztprobe_state=cluster.state) as served:
        agent = client(served.address, tls["collector"], tmp_path, probes=False)
        begin(agent, node)
        agent.apply(SLOW, seed=1)
        (lease,) = status(served.address, tls["collector"])["leases"]  # type: ignore[misc]
        assert lease["pods"] == ["fl/client-0", "fl/client-1"]
        assert "tbf" in qdiscs(node)
        assert f"lease {lease['lease']} of net5: " in served.end()
        assert "tbf" not in qdiscs(node)
        cluster.await_nothing(0)
        agent._connection.patience_s = 0
        with pytest.raises(ZtprobeError, match="does not answer"):
            agent.status()
        agent.close()


def test_the_capabilities_of_the_least_privilege_manifest_are_enough(
    node: Node, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    with (
        service(tls["agent"], tmp_path / "agent", before=least_privilege()) as served,
        client(served.address, tls["collector"], tmp_path) as agent,
    ):
        syslog = "without CAP_SYSLOG: the kernel functions in which packets are dropped have no names"
        assert set(status(served.address, tls["collector"])["lacks"]) == {syslog, *lacking()}  # type: ignore[misc]
        begin(agent, node)
        agent.apply(SLOW, seed=1)
        assert agent.measure("pod-a", ["pod-b"]).problems == []
        port = transfer(*node.pods)
        account = agent.stop()
    assert not any(account.loss.values()), account.loss
    bursts = tables(tmp_path, account)["bursts"]
    # At a rate the last bytes may leave by themselves, and fewer than 256 count as a control frame.
    assert SENT_BYTES - 256 < sent_bytes(bursts, "pod-a", port) <= SENT_BYTES
    assert set(bursts["process"]) >= {"pod-a/test"}


def test_a_lease_is_had_through_the_service_and_outlives_the_session(
    node: Node, tls: dict[str, TlsFiles], tmp_path: Path
) -> None:
    state = tmp_path / "ztprobe"
    with service(tls["agent"], tmp_path / "a", "--end-leases", ztprobe_state=state) as served:
        with client(served.address, tls["collector"], tmp_path, probes=False) as agent:
            wanted = LeaseRequest(profile=SLOW, pods=(node.pods[0],), lasts_s=300, namespace="fl")
            lease = agent.plan_lease(wanted)
            assert "tbf" not in qdiscs(node)
            agent.begin_lease(lease)
            assert qdiscs(node).count("tbf") == 1
            assert [one.lease.id for one in agent.leases()] == [lease.id]
        assert qdiscs(node).count("tbf") == 1
        served.end()
    assert "tbf" not in qdiscs(node)
    assert not state.exists()
