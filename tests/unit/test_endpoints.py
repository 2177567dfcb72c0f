"""Who serves whom, from sockets alone."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from ztprobe.agent.endpoints import OwnedSocket, merged, topology
from ztprobe.kernelnet import sockets as sockets_module
from ztprobe.kernelnet.sockets import SocketTables, TcpSocket, socket_owners, tcp_sockets
from ztprobe.pods.model import NOWHERE, Pod


def pod(name: str, address: str) -> Pod:
    return Pod(
        name=name, namespace="fl", address=address, netns=NOWHERE, netns_inode=1, interface="eth0",
        host_interface="v", node_netns=NOWHERE,
    )  # fmt: skip


SERVER, CLIENT, HUB = pod("server", "10.0.0.2"), pod("client", "10.0.0.3"), pod("hub", "10.0.0.4")


def owned(where: str, local: str, remote: str = "") -> OwnedSocket:
    (here, here_port), (there, _, there_port) = local.split(":"), remote.partition(":")
    found = TcpSocket(
        local=here, local_port=int(here_port), remote=there, remote_port=int(there_port or 0), inode=0
    )
    name, _, container = where.partition("/")
    return OwnedSocket(name, container, found)


def test_a_direct_connection_has_no_sidecar() -> None:
    found = topology(
        [SERVER, CLIENT],
        [
            owned("server/app", "0.0.0.0:7000"),
            owned("server/app", "10.0.0.2:7000", "10.0.0.3:40000"),
            owned("client/app", "10.0.0.3:40000", "10.0.0.2:7000"),
        ],
    )
    where = {"pod": "server", "container": "app", "address": "0.0.0.0", "port": 7000}
    assert found == {
        "pods": ["server", "client"],
        "endpoints": [where | {"reachable": True}],
        "connections": [{"pod": "client", "container": "app", "to": "server", "port": 7000}],
        "serves": {"server": ["client"]},
        "behind_sidecar": {},
    }


def test_an_application_behind_a_sidecar_is_connected_to_it_over_loopback() -> None:
    found = topology(
        [SERVER, CLIENT],
        [
            owned("server/app", "127.0.0.1:7001"),
            owned("server/app", "127.0.0.1:7001", "127.0.0.1:50000"),
            owned("server/proxy", "0.0.0.0:7000"),
            owned("server/proxy", "127.0.0.1:50000", "127.0.0.1:7001"),
            owned("server/proxy", "10.0.0.2:7000", "10.0.0.3:40000"),
            owned("client/proxy", "127.0.0.1:7002"),
            owned("client/proxy", "127.0.0.1:7002", "127.0.0.1:50001"),
            owned("client/proxy", "10.0.0.3:40000", "10.0.0.2:7000"),
            owned("client/app", "127.0.0.1:50001", "127.0.0.1:7002"),
        ],
    )
    assert found["behind_sidecar"] == {"server": "proxy", "client": "proxy"}
    assert {one["port"] for one in found["endpoints"] if not one["reachable"]} == {7001, 7002}
    assert found["connections"] == [{"pod": "client", "container": "proxy", "to": "server", "port": 7000}]
    assert found["serves"] == {"server": ["client"]}


def test_a_hub_serves_both_sides() -> None:
    found = topology(
        [SERVER, CLIENT, HUB],
        [
            owned("hub/link", "0.0.0.0:9091"),
            owned("hub/link", "0.0.0.0:9092"),
            owned("server/app", "10.0.0.2:40000", "10.0.0.4:9091"),
            owned("client/app", "10.0.0.3:40000", "10.0.0.4:9092"),
        ],
    )
    assert found["serves"] == {"hub": ["client", "server"]}
    assert [(one["pod"], one["port"]) for one in found["connections"]] == [("client", 9092), ("server", 9091)]


def test_what_is_seen_later_is_added() -> None:
    first = topology([SERVER, CLIENT], [owned("server/app", "0.0.0.0:7000")])
    assert first["serves"] == {}
    waiting = [
        owned("client/proxy", "127.0.0.1:7002", "127.0.0.1:50001"),
        owned("client/app", "127.0.0.1:50001", "127.0.0.1:7002"),
    ]
    second = merged(first, topology([SERVER, CLIENT], waiting))
    assert second["behind_sidecar"] == {"client": ""}
    through = owned("client/proxy", "10.0.0.3:40000", "10.0.0.2:7000")
    again = [owned("server/app", "0.0.0.0:7000"), *waiting, through]
    third = merged(second, topology([SERVER, CLIENT], again))
    assert third["serves"] == {"server": ["client"]}
    assert third["behind_sidecar"] == {"client": "proxy"}
    assert third["endpoints"] == first["endpoints"]


def test_sockets_of_this_very_process_are_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as caller:
            found = [s for s in tcp_sockets(_own()) if port in _ports(s)]
            owners = socket_owners([_own()])
            mine = {(s.local, s.local_port, s.remote, s.remote_port) for s in found if s.inode in owners}
            assert ("127.0.0.1", port, "", 0) in mine
            assert (*caller.getsockname(), "127.0.0.1", port) in mine


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_table_is_read_again_whenever_a_socket_has_come_or_gone(family: socket.AddressFamily) -> None:
    """The kernel's counters against its table, which is read every time beside it."""
    tables, own = SocketTables(), _own()
    host = "127.0.0.1" if family == socket.AF_INET else "::1"

    def seen() -> set[TcpSocket]:
        found = set(tables.of(1, [2**22 + 1, own]))  # the first of them is no process
        # Others on this machine come and go; ours have to be as the table has them.
        mine = {one for one in tcp_sockets(own) if port in _ports(one)}
        assert {one for one in found if port in _ports(one)} == mine
        return mine

    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        assert [one.listens for one in seen()] == [True]
        caller = socket.create_connection((host, port))
        assert 0 in {one.inode for one in seen()}  # nobody has accepted it
        accepted, _ = listener.accept()
        assert len(seen()) == 3 and 0 not in {one.inode for one in seen()}
        caller.close()
        accepted.close()
        assert len(seen()) == 1
    assert not seen()


def test_a_quiet_table_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    one = TcpSocket(local="10.0.0.1", local_port=1, remote="10.0.0.2", remote_port=2, inode=9)
    activity = ["1"]
    monkeypatch.setattr(sockets_module, "tcp_activity", lambda _pid: activity[0])
    monkeypatch.setattr(
        sockets_module, "asked_sockets", lambda pid: iter([one] if not asked.append(pid) else [])
    )
    tables = SocketTables()
    assert tables.of(1, [7]) == tables.of(1, [7]) == [one]
    assert asked == [7]
    activity[0] = "2"
    tables.of(1, [7])
    tables.of(2, [8])
    assert asked == [7, 7, 8]


def test_whose_sockets_are_is_asked_when_they_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [
        TcpSocket(local="10.0.0.1", local_port=port, remote="10.0.0.2", remote_port=2, inode=port)
        for port in (8, 9)
    ]
    activity, asked = ["1"], []
    monkeypatch.setattr(sockets_module, "tcp_activity", lambda _pid: activity[0])
    monkeypatch.setattr(sockets_module, "asked_sockets", lambda _pid: iter(both))
    monkeypatch.setattr(sockets_module, "socket_owners", lambda pids: asked.append(pids) or {9: pids[-1]})
    tables = SocketTables()
    for _ in range(2):
        assert list(tables.owned(1, [7])) == [(both[1], 7)]  # the other one is nobody's
    assert asked == [[7]]
    assert list(tables.owned(1, [7, 5])) == [(both[1], 5)]
    activity[0] = "2"
    assert list(tables.owned(1, [7, 5])) == [(both[1], 5)]
    assert asked == [[7], [7, 5], [7, 5]]


def _own() -> int:
    return int(Path("/proc/self").resolve().name)


def _ports(found: TcpSocket) -> tuple[int, int]:
    return found.local_port, found.remote_port


@pytest.mark.skipif(sys.byteorder != "little", reason="the words below are a little-endian machine's")
def test_mapped_addresses_are_ipv4_addresses(tmp_path: Path) -> None:
    (tmp_path / "7" / "net").mkdir(parents=True)
    (tmp_path / "7" / "net" / "tcp6").write_text(
        "  sl  local_address remote_address st\n"
        "0: 0000000000000000FFFF00000200F40A:C383 0000000000000000FFFF00000300F40A:9C40 01 0:0 0:0 0 0 0 77\n"
        "1: 00000000000000000000000000000000:1B58 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 78\n"
        "2: 00000000000000000000000001000000:1B58 00000000000000000000000000000000:0000 06 0:0 0:0 0 0 0 79\n"
    )
    connected, listening = tcp_sockets(7, tmp_path)
    assert (connected.local, connected.local_port) == ("10.244.0.2", 50051)
    assert (connected.remote, connected.remote_port, connected.inode) == ("10.244.0.3", 40000, 77)
    assert (listening.listens, listening.local, listening.local_port) == (True, "::", 7000)
