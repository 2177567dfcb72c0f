"""Clients that nobody has named: those that are connected to the server, here or elsewhere."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_targets import add_process
from ztprobe.attach import namespaces as namespaces_module
from ztprobe.attach import peers as peers_module
from ztprobe.attach.namespaces import Namespaces
from ztprobe.attach.owner_log import OwnedEnd, OwnerLog
from ztprobe.attach.peers import Peers
from ztprobe.errors import PreflightError
from ztprobe.kernelnet.sockets import TcpSocket
from ztprobe.pods.participants import Participants
from ztprobe.pods.process_table import ProcessTable
from ztprobe.pods.targets import parse_target

_NETNS = 7


@pytest.fixture
def deployment(tmp_path: Path) -> tuple[Participants, ProcessTable, OwnerLog]:
    add_process(tmp_path, 10, "server")
    add_process(tmp_path, 20, "node", started=200)
    table = ProcessTable(tmp_path)
    participants = Participants([parse_target("pid:10", "server")], table)
    participants.first_look()
    log = OwnerLog(lambda pid: one.name if (one := participants.of(pid)) is not None else None)
    _spoken(log, 0)
    return participants, table, log


def _spoken(log: OwnerLog, remote_port: int, remote: str = "198.51.100.7") -> None:
    there = (remote, remote_port) if remote_port else ("", 0)
    end = TcpSocket(
        local="192.0.2.1", local_port=8000, remote=there[0], remote_port=there[1], inode=remote_port
    )
    log.ends.append(
        OwnedEnd(
            netns=_NETNS,
            socket=end,
            pid=10,
            participant="server",
            first_seen_ns=1,
            last_seen_ns=2,
            found="at_attachment",
        )
    )


def test_who_is_in_none_of_this_machines_namespaces_is_elsewhere(
    deployment: tuple[Participants, ProcessTable, OwnerLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    participants, table, log = deployment
    monkeypatch.setattr(peers_module, "tcp_sockets", lambda _pid: iter(()))
    found = Peers(participants, table, log)
    assert not found.look(["192.0.2.1"])
    _spoken(log, 40000)
    _spoken(log, 40001)  # a second connection is of the same peer
    _spoken(log, 40002, remote="192.0.2.1")  # ours: its process has ended meanwhile
    assert found.look(["192.0.2.1"])
    assert [(one.name, one.role, one.address) for one in participants.all] == [
        ("server", "server", ""),
        ("client-1", "client", "198.51.100.7"),
    ]
    assert not participants.all[1].is_here
    assert participants.all[1].as_dict("")["address"] == "198.51.100.7"
    assert not found.look(["192.0.2.1"])


def test_a_peer_of_this_machine_is_its_process(
    deployment: tuple[Participants, ProcessTable, OwnerLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    participants, table, log = deployment
    other_end = TcpSocket(
        local="198.51.100.7", local_port=40000, remote="192.0.2.1", remote_port=8000, inode=99
    )

    def sockets(_pid: int) -> Iterator[TcpSocket]:
        yield other_end

    monkeypatch.setattr(peers_module, "tcp_sockets", sockets)
    monkeypatch.setattr(peers_module, "socket_owners", lambda pids: {99: 20} if 20 in pids else {})
    _spoken(log, 40000)
    assert Peers(participants, table, log).look([])
    assert [one.name for one in participants.all] == ["server", "client-1"]
    assert participants.of(20) is participants.all[1]


def test_a_peer_that_calls_a_services_address_is_found_by_its_own(
    deployment: tuple[Participants, ProcessTable, OwnerLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    participants, table, log = deployment
    service = TcpSocket(
        local="198.51.100.7", local_port=40000, remote="203.0.113.1", remote_port=80, inode=99
    )
    # Two that have one end for different peers: whose the server's connection is cannot be told.
    others = [
        TcpSocket(
            local="198.51.100.8", local_port=40000, remote=f"203.0.113.{i}", remote_port=80, inode=90 + i
        )
        for i in (1, 2)
    ]
    monkeypatch.setattr(
        peers_module, "tcp_sockets", lambda pid: iter([service, *others] if pid == 20 else [])
    )
    monkeypatch.setattr(peers_module, "socket_owners", lambda pids: dict.fromkeys((91, 92, 99), 20))
    _spoken(log, 40000)
    _spoken(log, 40000, remote="198.51.100.8")
    assert Peers(participants, table, log).look([])
    assert {(one.name, one.address) for one in participants.all if one.role == "client"} == {
        ("client-1", ""),
        ("client-2", "198.51.100.8"),
    }
    assert participants.of(20) is participants.all[1]


def test_the_log_of_owners_knows_our_own_sockets() -> None:
    log = OwnerLog(lambda pid: "me" if pid == os.getpid() else None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        log.look({_NETNS: [os.getpid()]}, at_attachment=True)
        with socket.create_connection(("127.0.0.1", port)) as caller, listener.accept()[0]:
            log.look({_NETNS: [os.getpid()]})
            mine = [end for end in log.ends if port in (end.socket.local_port, end.socket.remote_port)]
            assert {(end.found, end.older) for end in mine if not end.socket.listens} == {
                ("while_running", False)
            }
            assert len(mine) == 3
            again = len(log.ends)
            log.look({_NETNS: [os.getpid()]})
            assert len(log.ends) == again
            assert caller.getsockname()[1] in {end.socket.local_port for end in mine}


def test_a_namespace_of_another_user_namespace_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_netns: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(namespaces_module, "interfaces_of", refused)
    me = os.getpid()
    table = ProcessTable()
    mine = Participants([parse_target(f"pid:{me}", "server")], table)
    monkeypatch.setattr(mine, "_is_ours", lambda _process: False)
    mine.first_look()
    with Namespaces() as held, pytest.raises(PreflightError) as told:
        held.renew(mine.all, table)
    assert str(told.value).startswith(
        f"--server pid:{me}: its network namespace cannot be entered: Operation not"
    )
    assert "another user namespace" in str(told.value)
    assert held.held == {}
