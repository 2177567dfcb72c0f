"""Both directions of a connection at once, on two CPUs: each burst is told once, with times of its own."""

from __future__ import annotations

import socket
import threading
import time

from tests.kernel.pods import TestPod
from tests.kernel.watching import Watched
from ztprobe.kernelnet.netns import entered

PORT = 50051
WRITE_BYTES = 4_096  # a message of its own, which ends what came from the other side
WRITES = 4_000
CONNECTIONS = 4


def _exchange(one: socket.socket, other: socket.socket) -> None:
    """Both ends write and read at the same time, each by two threads."""

    def write(end: socket.socket) -> None:
        for _ in range(WRITES):
            end.sendall(bytes(WRITE_BYTES))
        end.shutdown(socket.SHUT_WR)

    def read(end: socket.socket) -> None:
        while end.recv(WRITE_BYTES):
            pass

    threads = [threading.Thread(target=do, args=(end,)) for do in (write, read) for end in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_every_burst_is_told_once(pods: tuple[TestPod, TestPod], watched: Watched) -> None:
    a, b = pods
    with entered(b.netns):
        listener = socket.create_server((b.address, PORT))
    began_ns = time.monotonic_ns()
    for _ in range(CONNECTIONS):
        with entered(a.netns):
            client = socket.create_connection((b.address, PORT))
        server, _ = listener.accept()
        _exchange(client, server)
        client.close()
        server.close()
    listener.close()
    time.sleep(0.1)
    ended_ns = time.monotonic_ns()
    bursts = watched.stop()["bursts"]
    assert watched.loss == dict.fromkeys(watched.loss, 0)
    assert len(bursts) > CONNECTIONS * 100, "the two ends never spoke at the same time"
    assert not bursts.duplicated().any()
    assert bursts.first_ns.between(began_ns, ended_ns).all()
    assert bursts.last_ns.between(began_ns, ended_ns).all()
    assert (bursts.first_ns <= bursts.last_ns).all()
