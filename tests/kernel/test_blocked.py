"""What holds a message up, and what ends it: readers that do not read, writers that pause, frames."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pandas as pd
import pytest

from tests.kernel.pods import TestPod, two_pods
from tests.kernel.watching import Watched
from ztprobe.emulation.delay_line.nfqueue import ACCEPT, QueueSocket
from ztprobe.events.kinds import Direction, Hook
from ztprobe.kernelnet.netns import entered

MS = 1_000_000
# More where a whole CPU is emulated in software (tools/test-vm).
_SLACK_NS = 20 * MS * float(os.environ.get("ZTPROBE_TEST_PATIENCE", "1"))

PORT = 15001
_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h; the socket module does not name it
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


def _pauses(table: pd.DataFrame) -> list[tuple[int, int]]:
    mine = table[(table["hook"] == Hook.LO) & (table["direction"] == Direction.TX)]
    # A delayed acknowledgement holds a writer up too, for some 40 ms.
    pauses = [(row.since_ns, row.ts_ns) for row in mine.itertuples()]
    return [(since_ns, ts_ns) for since_ns, ts_ns in pauses if ts_ns - since_ns > PAUSE_S / 2 * 1e9]


@pytest.mark.parametrize("reader_pauses", [True, False], ids=["reader", "writer"])
def test_a_pause_on_loopback_is_its_makers(
    pods: tuple[TestPod, TestPod], watched: Watched, reader_pauses: bool
) -> None:
    begin_ns, end_ns = _over_loopback(pods[0], reader_pauses=reader_pauses)
    tables = watched.stop()
    blocked, gaps = (_pauses(tables[name]) for name in ("blocked_readers", "gaps"))
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
        (bursts["pod"] == a.name) & (bursts["hook"] == Hook.ETH) & (bursts["direction"] == Direction.TX)
    ].itertuples()
    assert sent.end_seq - sent.first_seq == (10_007 if answered else 10_024)


# More than a first flight, and the last one is shorter than what counts as data.
SEGMENTS_BYTES = 15 * 1448 + 100


# A window update for a stream and one for the connection; many of them, in one packet and in several.
FRAMES = (26, 43 * 26, 250 * 26)


@pytest.mark.parametrize("frame_bytes", FRAMES)
@pytest.mark.parametrize(
    ("waits_s", "answers_s"),
    [(PAUSE_S, 0.0), (PAUSE_S, 0.006), (0.01, PAUSE_S)],
    ids=["at once", "after a wait for a CPU", "not to the frame"],
)
def test_who_goes_on_when_a_frame_comes_waited_for_it(
    waits_s: float, answers_s: float, frame_bytes: int
) -> None:
    with two_pods(gso=False) as pods:
        watched = Watched(pods)
        try:
            sent_ns, frame_ns, resumed_ns = _frame_amid_a_message(pods, waits_s, answers_s, frame_bytes)
            tables = watched.stop()
        finally:
            watched.close()
    a, _ = pods
    gaps, bursts = (table[table["pod"] == a.name] for table in (tables["gaps"], tables["bursts"]))
    (burst,) = bursts[(bursts["hook"] == Hook.ETH) & (bursts["direction"] == Direction.TX)].itertuples()
    assert burst.end_seq - burst.first_seq == 2 * SEGMENTS_BYTES
    gaps = gaps[gaps["hook"] == Hook.ETH]
    starved_ns = int((gaps["ts_ns"] - gaps["since_ns"]).sum())
    if answers_s < PAUSE_S:
        assert abs(burst.http2_ns - (frame_ns - sent_ns)) < _SLACK_NS / 10
        assert abs(starved_ns - (resumed_ns - frame_ns)) < _SLACK_NS / 10
    else:
        assert burst.http2_ns == 0
        assert abs(starved_ns - (resumed_ns - sent_ns)) < _SLACK_NS
    assert burst.queue_ns < MS


def _frame_amid_a_message(
    pods: tuple[TestPod, TestPod], waits_s: float, answers_s: float, frame_bytes: int
) -> tuple[int, int, int]:
    """A sends, B sends a frame later, A sends more after that: when the three began, in ns."""
    sent_ns, frame_ns, resumed_ns = _talk(
        pods, (0.0, "a", SEGMENTS_BYTES), (waits_s, "b", frame_bytes), (answers_s, "a", SEGMENTS_BYTES)
    )
    return sent_ns, frame_ns, resumed_ns


def _talk(pods: tuple[TestPod, TestPod], *parts: tuple[float, str, int]) -> list[int]:
    """(seconds after the last part was read, who writes, bytes) on one connection; when each began, in ns."""
    a, b = pods
    with entered(b.netns):
        listener = socket.create_server((b.address, 50051))
    with entered(a.netns):
        ends = {"a": socket.create_connection((b.address, 50051))}
    ends["b"], _ = listener.accept()
    for one in ends.values():
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times = []
    for wait_s, who, part_bytes in parts:
        time.sleep(wait_s)
        times.append(time.monotonic_ns())
        ends[who].sendall(b"m" * part_bytes)
        left = part_bytes
        while left:
            left -= len(ends["b" if who == "a" else "a"].recv(left))
    for one in (*ends.values(), listener):
        one.close()
    time.sleep(0.05)
    return times


def _spans(bursts: pd.DataFrame, pod: TestPod, direction: Direction) -> list[tuple[int, int]]:
    """(first_ns, bytes) of a pod's bursts on the wire, in time order."""
    mine = bursts[
        (bursts["pod"] == pod.name) & (bursts["hook"] == Hook.ETH) & (bursts["direction"] == direction)
    ]
    return sorted((int(row.first_ns), int(row.bytes)) for row in mine.itertuples())


@pytest.mark.parametrize("frame_bytes", FRAMES[1:])
def test_frames_at_a_messages_end_do_not_begin_the_next(
    pods: tuple[TestPod, TestPod], watched: Watched, frame_bytes: int
) -> None:
    a, b = pods
    frames_parts = ((0.0, "b", frame_bytes), (PAUSE_S, "b", 39))
    times = _talk(pods, (0.0, "a", 100_003), *frames_parts, (PAUSE_S, "b", 100_019))
    bursts = watched.stop()["bursts"]
    for pod, direction in ((b, Direction.TX), (a, Direction.RX)):
        (_, frames), (first_ns, message) = _spans(bursts, pod, direction)
        assert (frames, message) == (frame_bytes, 100_019)
        assert 0 <= first_ns - times[3] < _SLACK_NS
    for pod, direction in ((a, Direction.TX), (b, Direction.RX)):
        assert [span[1] for span in _spans(bursts, pod, direction)] == [100_003]


def test_small_messages_are_not_taken_for_frames(pods: tuple[TestPod, TestPod], watched: Watched) -> None:
    a, b = pods
    up, down = (8_209, 13_003, 8_219), (9_001, 8_221, 13_007)
    parts = [
        part for one, other in zip(up, down, strict=True) for part in ((0.0, "a", one), (0.0, "b", other))
    ]
    _talk(pods, *parts)
    bursts = watched.stop()["bursts"]
    for pod, sends, receives in ((a, up, down), (b, down, up)):
        assert tuple(span[1] for span in _spans(bursts, pod, Direction.TX)) == sends
        assert tuple(span[1] for span in _spans(bursts, pod, Direction.RX)) == receives


def test_a_message_begins_with_what_a_window_was_left_for(
    pods: tuple[TestPod, TestPod], watched: Watched
) -> None:
    a, b = pods
    times = _talk(pods, (0.0, "a", 3_001), (0.03, "b", 26), (0.01, "a", 20_011))
    bursts = watched.stop()["bursts"]
    ((first_ns, sent_bytes),) = _spans(bursts, a, Direction.TX)
    assert sent_bytes == 23_012
    assert 0 <= first_ns - times[0] < _SLACK_NS
    # Where it arrives it may be in pieces, which the analysis joins by the sender's sequence numbers.
    assert sum(span[1] for span in _spans(bursts, b, Direction.RX)) == 23_012


@contextlib.contextmanager
def _answers_one_by_one(pod: TestPod, port: int, period_s: float) -> Iterator[None]:
    """What the pod sends from a port leaves it one packet at a time."""
    with entered(pod.netns):
        queue = QueueSocket([700], max_packets=4096, whole_gso=True)
        rule = f"iptables -t raw -A OUTPUT -p tcp --sport {port} -j NFQUEUE --queue-num 700 --queue-bypass"
        subprocess.run(rule.split(), check=True)
    over = threading.Event()

    def run() -> None:
        held: list[tuple[int, int]] = []
        while not over.wait(period_s):
            held += [(number, packet) for number, packet, _ in queue.receive()]
            if held:
                queue.verdict(held[:1], ACCEPT)
                del held[0]

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        queue.close()


def test_waiting_for_an_acknowledgement_is_not_a_queue(
    pods: tuple[TestPod, TestPod], watched: Watched
) -> None:
    """TCP leaves the last of its window unused until an acknowledgement lets it send a larger piece."""
    a, b = pods
    period_s, left = 0.002, 6 << 20
    with _answers_one_by_one(b, PORT, period_s):
        with entered(b.netns):
            listener = socket.create_server((b.address, PORT))
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        with entered(a.netns):
            client = socket.socket()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")  # does not pace itself
        client.connect((b.address, PORT))
        server, _ = listener.accept()
        writer = threading.Thread(target=client.sendall, args=(b"m" * left,))
        writer.start()
        while left:
            left -= len(server.recv(1 << 16))
        writer.join()
        for one in (client, server, listener):
            one.close()
        time.sleep(0.1)
    bursts = watched.stop()["bursts"]
    (sent,) = bursts[
        (bursts["pod"] == a.name) & (bursts["hook"] == Hook.ETH) & (bursts["direction"] == Direction.TX)
    ].itertuples()
    assert sent.queue_ns < 0.1 * (sent.last_ns - sent.first_ns)
