"""What the kernel lists of TCP sockets, against these sockets themselves and against pyroute2."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ztprobe.kernelnet import sockets
from ztprobe.kernelnet.inet_diag import TcpRow, tcp_rows
from ztprobe.kernelnet.netlink import sock_diag
from ztprobe.kernelnet.tcp_ends import _end

ESTABLISHED, LISTEN = 1, 10
BOTH = 1 << ESTABLISHED | 1 << LISTEN
# Of a family: where a server listens, and as what a client's address is shown there.
PLACES = {
    "ipv4": (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
    "ipv6": (socket.AF_INET6, "::1", "::1"),
    "mapped": (socket.AF_INET6, "::", "127.0.0.1"),
}


@contextlib.contextmanager
def connected(kind: str) -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    """A listener, what it accepted and who connected; some bytes have been said."""
    family, address, shown = PLACES[kind]
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        try:
            listener.bind((address, 0))
        except OSError as error:
            pytest.skip(f"no {kind} here: {error}")
        listener.listen()
        with socket.create_connection((shown, listener.getsockname()[1])) as client:
            server, _ = listener.accept()
            with server:
                client.sendall(b"x" * 1000)
                assert server.recv(400) and server.send(b"y" * 7)
                assert client.recv(7)
                yield listener, server, client


def rows_of(kind: str, port: int) -> list[TcpRow]:
    rows = tcp_rows(None, PLACES[kind][0], BOTH, with_info=True)
    return [row for row in rows if port in (row.local_port, row.remote_port)]


@pytest.mark.parametrize("kind", PLACES)
def test_sockets_are_listed_as_they_are(kind: str) -> None:
    with connected(kind) as (listener, server, client):
        port = listener.getsockname()[1]
        rows = rows_of(kind, port)
        (listens,) = (row for row in rows if row.state == LISTEN)
        assert (listens.local, listens.local_port) == (listener.getsockname()[0], port)
        (accepted,) = (row for row in rows if row.state == ESTABLISHED and row.local_port == port)
        shown = PLACES[kind][2]
        assert (accepted.local, accepted.remote) == (shown, shown)
        assert accepted.remote_port == client.getsockname()[1]
        assert accepted.receive_queue_bytes == 600
        end = _end(accepted)
        assert (end.received_bytes, end.unread_bytes) == (1000, 600)
        assert end.acked_bytes in (6, 7)  # of who accepted, the SYN is not among the acknowledged bytes
        assert end.state == "established" and end.repeats == 0
        assert end.sent_age_s is not None and 0 <= end.sent_age_s < 5
        assert 0 < end.rto_s <= 3 and end.window_bytes > 0
        assert accepted.inode == os.fstat(server.fileno()).st_ino


@pytest.mark.parametrize("kind", PLACES)
def test_a_process_finds_them_by_its_namespace(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a family without a socket the kernel's whole table is not walked through."""
    families = []

    def rows(_: Path, family: int, states: int) -> Iterator[TcpRow]:
        families.append(family)
        return tcp_rows(None, family, states)

    monkeypatch.setattr(sockets, "tcp_rows", rows)
    with connected(kind) as (listener, _, _):
        port = listener.getsockname()[1]
        found = [
            one for one in sockets.asked_sockets(os.getpid()) if port in (one.local_port, one.remote_port)
        ]
        assert {one.listens for one in found} == {True, False}
        assert PLACES[kind][0] in families
    in_use: dict[int, str] = {socket.AF_INET: "sockstat", socket.AF_INET6: "sockstat6"}
    monkeypatch.setattr(sockets, "_has_sockets", lambda _, file: file == "sockstat6")
    families.clear()
    list(sockets.asked_sockets(os.getpid()))
    assert [in_use[family] for family in families] == ["sockstat6"]


@pytest.mark.parametrize("kind", PLACES)
def test_pyroute2_lists_the_same(kind: str) -> None:
    with connected(kind) as (listener, _, _), sock_diag() as diag:
        port = listener.getsockname()[1]
        theirs = {
            (one["idiag_state"], one["idiag_sport"], one["idiag_dport"], one["idiag_inode"])
            for one in diag.get_sock_stats(family=PLACES[kind][0], states=BOTH)
            if port in (one["idiag_sport"], one["idiag_dport"])
        }
        ours = {(row.state, row.local_port, row.remote_port, row.inode) for row in rows_of(kind, port)}
        assert ours == theirs and len(ours) >= 2


def test_a_list_that_may_not_be_had_is_an_error() -> None:
    with pytest.raises(OSError, match=r"Invalid argument|No such file"):
        list(tcp_rows(None, 99, BOTH))
