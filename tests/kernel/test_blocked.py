"""What holds a message up, and what ends it: readers that do not read, writers that pause, frames."""

from __future__ import annotations

import os
import socket
import threading
import time

import pandas as pd
import pytest

from tests.kernel.pods import TestPod
from tests.kernel.watching import Watched
from ztprobe.events import Direction, Hook, PointKind
from ztprobe.netns import entered

MS = 1_000_000
# More where a whole CPU is emulated in software (tools/test-vm).
_SLACK_NS = 20 * MS * float(os.environ.get("ZTPROBE_TEST_PATIENCE", "1"))

PORT = 15001
CHUNK = b"x" * 16_384
PAUSE_S = 0.15


def _over_loopback(pod: TestPod, *, reader_pauses: bool) -> tuple[int, int]:
    """1 MB from a listener to who connected; either end pauses in the middle; when, in ns."""
    with entered(pod.netns):
        listener = socket.create_server(("127.0.0.1", PORT))
        reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
    reader.connect(("127.0.0.1", PORT))
    writer, _ = listener.accept()
    # As gRPC does it; else a delayed acknowledgement holds the last bytes before a pause for 40 ms.
    writer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pauses: list[tuple[int, int]] = []

    def pause() -> None:
        begin_ns = time.monotonic_ns()
        time.sleep(PAUSE_S)
        pauses.append((begin_ns, time.monotonic_ns()))

    def write() -> None:
        for number in range(64):
            if number == 32 and not reader_pauses:
                pause()
            writer.sendall(CHUNK)

    thread = threading.Thread(target=write)
    thread.start()
    left = 64 * len(CHUNK)
    while left:
        if left < 48 * len(CHUNK) and reader_pauses and not pauses:
            pause()
        left -= len(reader.recv(min(left, 1 << 14)))
    thread.join()
    for one in (reader, writer, listener):
        one.close()
    time.sleep(0.05)
    return pauses[0]


def _points(points: pd.DataFrame, kind: PointKind) -> list[tuple[int, int]]:
    mine = points[(points["kind"] == kind) & (points["b"] == Hook.LO) & (points["c"] == Direction.TX)]
    # A delayed acknowledgement holds a writer up too, for some 40 ms.
    pauses = [(row.since_ns, row.ts_ns) for row in mine.itertuples()]
    return [(since_ns, ts_ns) for since_ns, ts_ns in pauses if ts_ns - since_ns > PAUSE_S / 2 * 1e9]


@pytest.mark.parametrize("reader_pauses", [True, False], ids=["reader", "writer"])
def test_a_pause_on_loopback_is_its_makers(
    pods: tuple[TestPod, TestPod], watched: Watched, reader_pauses: bool
) -> None:
    begin_ns, end_ns = _over_loopback(pods[0], reader_pauses=reader_pauses)
    points = watched.stop()["points"]
    blocked, gaps = (_points(points, kind) for kind in (PointKind.BLOCKED, PointKind.GAP))
    ((since_ns, until_ns),) = blocked if reader_pauses else gaps
    assert not (gaps if reader_pauses else blocked)
    # The writer goes on for as long as the reader's buffer has room.
    assert abs(since_ns - begin_ns) < _SLACK_NS
    assert abs(until_ns - end_ns) < _SLACK_NS


@pytest.mark.parametrize("answered", [True, False], ids=["answer", "tail"])
def test_a_small_frame_ends_a_message_unless_it_answers_one(
    pods: tuple[TestPod, TestPod], watched: Watched, answered: bool
) -> None:
    a, b = pods
    with entered(b.netns):
        listener = socket.create_server((b.address, 50051))
    with entered(a.netns):
        client = socket.create_connection((b.address, 50051))
    server, _ = listener.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(b"m" * 10_007)
    if answered:
        server.sendall(b"p" * 17)
        client.recv(17)
    client.sendall(b"p" * 17)
    left = 10_024
    while left:
        left -= len(server.recv(left))
    for one in (client, server, listener):
        one.close()
    time.sleep(0.05)
    bursts = watched.stop()["bursts"]
    (sent,) = bursts[
        (bursts["pod"] == a.name) & (bursts["hook"] == Hook.ETH) & (bursts["dir"] == Direction.TX)
    ].itertuples()
    assert sent.max_seq - sent.first_seq == (10_007 if answered else 10_024)
