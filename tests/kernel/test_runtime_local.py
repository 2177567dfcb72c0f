"""The local runtime, from pods up to nothing left, with a stub in place of the workload."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernel import workload_stub
from tests.kernel.workload_stub import finish, traces, up
from ztprobe.errors import EnforcementError, PreflightError, UsageError, WorkloadError
from ztprobe.kernelnet import netlink
from ztprobe.kernelnet.netns import entered
from ztprobe.runtime.local import firewall
from ztprobe.runtime.local.processes import Preload, Zygote
from ztprobe.runtime.local.runtime import LocalRuntime


def inside(runtime: LocalRuntime, pod: str, *command: str) -> str:
    """What a command prints inside a pod's network namespace."""
    netns = next(p.netns for p in runtime.pods if p.name == pod)
    with entered(netns):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_pods_have_what_a_cluster_would_give_them(tmp_path: Path) -> None:
    with up(workload_stub.runtime(tmp_path, level=0)) as runtime:
        pods = runtime.pods
        assert [p.name for p in pods] == ["fl-server", "fl-client-0", "fl-client-1", "kube-dns"]
        assert (runtime.server, *runtime.clients) == pods[:3]
        assert len({p.address for p in pods}) == 4
        assert [runtime.loopback_port(p.name) for p in pods] == [None] * 4
        for pod in pods:
            link = inside(runtime, pod.name, "ip", "-d", "link", "show", pod.interface)
            assert " mtu 1500 " in link
            assert f"{pod.address}/24" in inside(runtime, pod.name, "ip", "address", "show", "eth0")
            assert "inet6" not in inside(runtime, pod.name, "ip", "address")
            sysctl = inside(runtime, pod.name, "cat", "/proc/sys/net/ipv4/tcp_congestion_control")
            assert sysctl.strip() == "cubic"
        runtime.secure()
        runtime.start_server()
        source = runtime.source
        assert set(source.processes(pods).values()) == {("fl-server", "server"), ("kube-dns", "dnsmasq")}
        finish(runtime)
        assert source.processes(pods[:3]) == {}
        for client in runtime.clients:
            assert source.log(client, "client").read_text() == f"{client.name} {pods[0].address}\n"
        assert source.log(runtime.server, "server").read_text() == "served\n"
        queries = source.log(pods[3], "dnsmasq").read_text()
        assert re.search(rf"query\[A\] fl-server.fl.svc.cluster.local from {pods[1].address}", queries)
        assert re.search(rf"query\[AAAA\] fl-server.fl.svc.cluster.local from {pods[1].address}", queries)
        assert "fl-server.fl.svc.cluster.local is NODATA-IPv6" in queries
        facts = runtime.facts()
        assert facts["sysctls"]["net.ipv4.tcp_congestion_control"] == "cubic"
        assert facts["offloads"] is False


@pytest.mark.parametrize("offloads", [False, True])
def test_packets_have_wire_size_unless_offloads_are_wanted(tmp_path: Path, offloads: bool) -> None:
    with up(workload_stub.runtime(tmp_path, level=0, clients=1, offloads=offloads)) as runtime:
        server, client = runtime.pods[:2]
        with entered(server.netns):
            listener = socket.create_server((server.address, 0))
        with entered(client.netns):
            sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
        size = 4_000_000
        with listener, receiver, sender, ThreadPoolExecutor(1) as pool:
            sent = pool.submit(sender.sendall, bytes(size))
            received = 0
            while received < size:
                received += len(receiver.recv(1 << 20))
            sent.result()
        with entered(runtime.node_netns):
            command = ["ip", "-s", "-j", "link", "show", client.host_interface]
            (link,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        arrived = link["stats64"]["rx"]
        assert arrived["bytes"] > size
        mean_bytes = arrived["bytes"] / arrived["packets"]
        assert mean_bytes > 5000 if offloads else mean_bytes <= 1514


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_level_is_proven_and_runs(tmp_path: Path, level: int) -> None:
    with up(workload_stub.runtime(tmp_path, level=level)) as runtime:
        runtime.secure()
        runtime.start_server()
        started = time.monotonic()
        enforcement = runtime.prove()
        assert time.monotonic() - started < 6
        assert enforcement.network_policy_expected is (level in (1, 3))
        assert enforcement.mtls_expected is (level in (2, 3))
        assert len(enforcement.network_policy) == 6
        assert len(enforcement.mtls) == (6 if level in (2, 3) else 0)
        assert all(proof.passed for proof in (*enforcement.network_policy, *enforcement.mtls))
        words = {proof.name.partition(":")[0] for proof in enforcement.network_policy}
        assert words == {"allowed", "forbidden" if level in (1, 3) else "open without policy"}
        finish(runtime)
        # The same verdicts, from the policies alone.
        for source, target, port, allowed in (
            ("fl-client-0", "fl-server", 50051, True),
            ("fl-client-0", "kube-dns", 53, True),
            ("fl-client-0", "fl-server", 50052, level in (0, 2)),
            ("outsider", "fl-server", 50051, level in (0, 2)),
            ("fl-server", "fl-client-0", 80, level in (0, 2)),
        ):
            assert runtime.rules.allows(source, target, "TCP", port).allowed is allowed


def test_an_absent_policy_is_noticed(tmp_path: Path) -> None:
    with up(workload_stub.runtime(tmp_path, level=1, clients=1)) as runtime:
        runtime.secure()
        runtime.start_server()
        with entered(runtime.node_netns):
            # nft delete rule ...: everything passes, the table and its counters stay
            subprocess.run(["nft", "flush", "chain", "ip", "ztprobe_policy", "forward"], check=True)
        with pytest.raises(EnforcementError, match=r"forbidden: outsider -> fl-server:50051/tcp") as raised:
            runtime.prove()
        assert "allowed" not in str(raised.value)


def test_a_port_that_is_merely_dead_proves_nothing(tmp_path: Path) -> None:
    with up(workload_stub.runtime(tmp_path, level=1, clients=1)) as runtime:
        runtime.secure()
        runtime.start_server()
        with entered(runtime.node_netns):
            # Dropped, but by somebody else's rule, before the policy sees it.
            rules = (
                "table ip other { chain forward { type filter hook forward priority -170;"
                " tcp dport 50052 drop; }; }"
            )
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
        with pytest.raises(EnforcementError, match=r"50052/tcp: expected .* 0 packets dropped by the policy"):
            runtime.prove()


def test_a_blocked_name_server_is_noticed(tmp_path: Path) -> None:
    manifests = workload_stub.manifests(tmp_path)
    policies = manifests / "components/network-policy/policies.yaml"
    policies.write_text(policies.read_text().replace("protocol: UDP\n          port: 53", "port: 54"))
    with up(workload_stub.runtime(tmp_path, 1, 1, manifests_dir=manifests)) as runtime:
        runtime.secure()
        runtime.start_server()
        with pytest.raises(EnforcementError, match=r"allowed: fl-client-0 -> kube-dns:53/udp.*timed out"):
            runtime.prove()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("verify required ssl-min-ver TLSv1.3", "verify optional ssl-min-ver TLSv1.3", "without a"),
        ("tcp-request session reject unless from_client", "", "with another account's certificate"),
    ],
)
def test_a_lax_proxy_is_noticed(tmp_path: Path, old: str, new: str, problem: str) -> None:
    manifests = workload_stub.manifests(tmp_path)
    config = manifests / "components/mtls/proxy-config.yaml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    with up(workload_stub.runtime(tmp_path, 2, 1, manifests_dir=manifests)) as runtime:
        runtime.secure()
        runtime.start_server()
        with pytest.raises(EnforcementError, match=problem):
            runtime.prove()


def test_drops_are_counted_per_flow(tmp_path: Path) -> None:
    with up(workload_stub.runtime(tmp_path, level=1)) as runtime:
        runtime.secure()
        client, other = runtime.pods[1], runtime.pods[2]
        inside(
            runtime,
            client.name,
            "/usr/bin/python3",
            "-c",
            "import socket\nfor port in range(7000, 7023):\n"
            "    socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
            f".sendto(b'x', ('{other.address}', port))",
        )
        assert firewall.dropped(runtime.node_netns) == {
            firewall.Flow(client.address, other.address, "udp", port): 1 for port in range(7000, 7023)
        }
        assert firewall.counters(runtime.node_netns)["drop_egress"] == 23


def test_a_failing_client_is_named_with_its_last_words(tmp_path: Path) -> None:
    manifests = workload_stub.manifests(tmp_path, client="import sys; sys.exit('no model today')")
    with up(workload_stub.runtime(tmp_path, 0, 1, manifests_dir=manifests)) as runtime:
        runtime.secure()
        runtime.start_server()
        with pytest.raises(WorkloadError, match=r"fl-client-0/client exited with status 1: no model today"):
            finish(runtime)


def test_a_memory_limit_of_the_manifests_is_applied(tmp_path: Path) -> None:
    manifests = workload_stub.manifests(tmp_path, client="x = b'x' * (256 << 20)")
    clients = manifests / "base/clients.yaml"
    clients.write_text(clients.read_text().replace("memory: 2Gi", "memory: 64Mi"))
    with up(workload_stub.runtime(tmp_path, 0, 1, manifests_dir=manifests)) as runtime:
        runtime.secure()
        runtime.start_server()
        with pytest.raises(WorkloadError, match=r"fl-client-0/client was killed by SIGKILL \(out of memory"):
            finish(runtime)


def test_a_name_that_is_taken_is_refused_and_left_alone(tmp_path: Path) -> None:
    runtime = workload_stub.runtime(tmp_path, 0, 1)
    name = f"ztp-{runtime._run_id}-fl-server"
    netlink.create_netns(name)
    try:
        with pytest.raises(UsageError, match=f"{name} exists already"):
            runtime.create()
    finally:
        runtime.down()
        with contextlib.suppress(FileNotFoundError):
            netlink.remove_netns(name)
    assert traces(runtime._run_id) == []


@pytest.mark.parametrize(
    ("program", "package", "level"),
    [("dnsmasq", "dnsmasq-base", 0), ("nft", "nftables", 1), ("haproxy", "haproxy", 2)],
)
def test_a_missing_program_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, package: str, level: int
) -> None:
    found = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, path=None: None if name == program else found(name, path=path)
    )
    runtime = workload_stub.runtime(tmp_path, level, 1)
    with pytest.raises(PreflightError, match=rf"^{program} is missing: apt-get install {package}$"):
        runtime.create()
    assert traces(runtime._run_id) == []


def test_root_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PreflightError, match="need root"):
        workload_stub.runtime(tmp_path, 0, 1).create()


def test_an_unknown_congestion_control_is_named(tmp_path: Path) -> None:
    options = workload_stub.runtime(tmp_path, 0, 1)._options
    runtime = LocalRuntime(options, "tnone", tmp_path, offloads=False, congestion_control="nonesuch")
    with pytest.raises(PreflightError, match=r"no congestion control nonesuch, only .*cubic"):
        runtime.create()


def test_more_pods_than_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"254 pods do not fit the node's network \(253 addresses.*at most 250"
    ):
        workload_stub.runtime(tmp_path, 0, clients=251)


def test_a_data_directory_without_the_files_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    zygote = Zygote(
        (), tmp_path / "log", Preload(module="fl.preload", dataset="mnist", data_dir=str(tmp_path / "empty"))
    )
    try:
        with pytest.raises(UsageError, match=str(tmp_path / "empty")):
            zygote.wait_ready()
    finally:
        zygote.close()


def test_a_workload_that_cannot_be_imported_is_a_fault(tmp_path: Path) -> None:
    zygote = Zygote((), tmp_path / "log", Preload(module="fl.nonesuch", dataset="digits", data_dir=None))
    try:
        with pytest.raises(
            WorkloadError, match=r"cannot be loaded: No module named 'fl.nonesuch' \(see .*log\)"
        ):
            zygote.wait_ready()
    finally:
        zygote.close()
