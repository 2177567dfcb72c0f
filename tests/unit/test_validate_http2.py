"""HTTP/2's window as a capture of plain text shows it, on what gRPC really sent."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest

from ztprobe.errors import WorkloadError
from ztprobe.validate.observe.capture import ACK, SYN, CapturedPacket
from ztprobe.validate.observe.http2 import (
    End,
    behind_sidecar,
    closed_windows,
    frames,
    sealed_progress,
)

CLIENT, SERVER = ("10.244.0.4", 56068), ("10.244.0.2", 50051)
DATA, HEADERS, SETTINGS, WINDOW_UPDATE = 0, 1, 4, 8
MODEL_BYTES = 8192


def seen(ts_ns: int, sender: End, seq: int, payload: bytes = b"", flags: int = ACK) -> CapturedPacket:
    other = SERVER if sender == CLIENT else CLIENT
    ends = (sender[0], other[0], sender[1], other[1])
    return CapturedPacket(ts_ns, *ends, False, seq % (1 << 32), 0, flags, 512, len(payload), payload)


def frame(kind: int, stream: int, payload: bytes, flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def update(stream: int, increment_bytes: int) -> bytes:
    return frame(WINDOW_UPDATE, stream, struct.pack(">I", increment_bytes))


# The beginning of a connection of gRPC 1.85 at the server's interface (20 ms each way), when both ends
# grant 8192 bytes. As recorded, but for zeros where headers and the model's floats were.
CLIENT_HELLO = bytes.fromhex(
    "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a"
    "00001e040000000000" "000200000000" "000300000000" "000400002000" "000600004000" "fe0300000001"
)  # fmt: skip
SERVER_HELLO = bytes.fromhex("000012040000000000" "000400002000" "000600004000" "fe0300000001")  # fmt: skip
SETTINGS_ACK = bytes.fromhex("000000040100000000")
REQUEST = bytes.fromhex("0000ed010400000001") + bytes(237) + bytes.fromhex("00005d000000000001") + bytes(93)
ANSWER = bytes.fromhex("00004e010400000001") + bytes(78) + bytes.fromhex("0000040800000000010000005d")
MODEL_BEGIN = bytes.fromhex("002000000000000001") + bytes(MODEL_BYTES)
UPDATES = bytes.fromhex("000004080000000001" "00102000" "000004080000000000" "000f4001")  # fmt: skip
MODEL_GOES_ON = bytes.fromhex("004000000000000001")
LAST_BYTE_NS, UPDATE_NS = 118_748_209, 159_124_261


def recorded(move: int = 0) -> list[CapturedPacket]:
    """:param move: added to all sequence numbers."""
    up, down = 579_735_889 + move, 1_625_860_712 + move
    model = ANSWER + MODEL_BEGIN
    return [
        seen(0, CLIENT, up, flags=SYN),
        seen(39_568, SERVER, down, flags=SYN | ACK),
        seen(40_587_356, CLIENT, up + 1, CLIENT_HELLO),
        seen(40_659_152, SERVER, down + 1, SERVER_HELLO),
        seen(40_810_397, SERVER, down + 28, SETTINGS_ACK),
        seen(80_990_148, CLIENT, up + 64, SETTINGS_ACK),
        seen(81_247_530, CLIENT, up + 73, REQUEST),
        seen(118_705_516, SERVER, down + 37, model[:2896]),
        seen(118_742_621, SERVER, down + 2933, model[2896:5792]),
        seen(LAST_BYTE_NS, SERVER, down + 5829, model[5792:]),
        seen(UPDATE_NS, CLIENT, up + 421, UPDATES),
        seen(159_317_739, SERVER, down + 8338, MODEL_GOES_ON + bytes(2887)),
        seen(159_344_098, SERVER, down + 11_234, bytes(13_497)),
    ]


def test_the_recorded_frames_by_hand() -> None:
    found = [(sender, f.kind, f.stream, f.payload_bytes) for sender, _, f in frames(recorded())]
    assert found == [
        (CLIENT, SETTINGS, 0, 30),
        (SERVER, SETTINGS, 0, 18),
        (SERVER, SETTINGS, 0, 0),
        (CLIENT, SETTINGS, 0, 0),
        (CLIENT, HEADERS, 1, 237),
        (CLIENT, DATA, 1, 93),
        (SERVER, HEADERS, 1, 78),
        (SERVER, WINDOW_UPDATE, 1, 4),
        (SERVER, DATA, 1, 8192),
        (CLIENT, WINDOW_UPDATE, 1, 4),
        (CLIENT, WINDOW_UPDATE, 0, 4),
        (SERVER, DATA, 1, 16_384),
    ]


@pytest.mark.parametrize("move", [0, (1 << 32) - 1_625_863_000], ids=["plain", "wrapping"])
def test_a_window_is_closed_from_its_last_byte_to_the_update(move: int) -> None:
    # 8192 bytes by the client's SETTINGS, and all of them sent.
    assert closed_windows(recorded(move)) == {(SERVER, CLIENT): [(LAST_BYTE_NS, UPDATE_NS)]}


def test_the_end_of_a_message_is_no_wait() -> None:
    assert closed_windows(recorded()[:-2]) == {}


def test_order_and_repetition_change_nothing_but_the_time() -> None:
    packets = recorded()
    # The middle of the three comes last, and the first once more: the last byte is there with the middle.
    first, middle, last = packets[7:10]
    late = seen(150_000_000, SERVER, middle.seq, middle.head)
    shuffled = [*packets[:7], first, last, seen(140_000_000, SERVER, first.seq, first.head), late]
    assert closed_windows([*shuffled, *packets[10:]]) == {(SERVER, CLIENT): [(150_000_000, UPDATE_NS)]}


def stream(*written: tuple[int, End, bytes]) -> Iterable[CapturedPacket]:
    """A connection whose SETTINGS leave the default, and what is written on it at which ms."""
    yield from recorded()[:2]
    at = {CLIENT: 579_735_890, SERVER: 1_625_860_713}
    for ts_ms, sender, payload in ((0, CLIENT, CLIENT_HELLO[:24]), *written):
        yield seen(ts_ms * 1_000_000, sender, at[sender], payload)
        at[sender] += len(payload)


def test_both_windows_count_and_settings_move_only_the_streams() -> None:
    size = struct.pack(">HI", 4, 100_000)
    packets = stream(
        (1, CLIENT, frame(DATA, 1, bytes(40_000)) + frame(DATA, 3, bytes(25_535))),  # 65535: the connection's
        (2, SERVER, update(3, 50_000)),  # a stream's is of no use
        (3, SERVER, frame(SETTINGS, 0, size)),
        (4, SERVER, update(0, 10)),
        (5, CLIENT, frame(DATA, 3, bytes(10))),
        (6, SERVER, update(0, 1 << 20)),
        (7, CLIENT, frame(DATA, 1, bytes(60_000))),  # with the 40,000 before: the stream's 100,000
        (8, SERVER, update(0, 10)),
        (9, SERVER, frame(SETTINGS, 0, struct.pack(">HI", 4, 100_001))),
        (10, CLIENT, frame(DATA, 1, b"x")),
    )
    times = [(s // 1_000_000, e // 1_000_000) for s, e in closed_windows(list(packets))[CLIENT, SERVER]]
    assert times == [(1, 4), (5, 6), (7, 9)]


def test_what_was_not_captured_whole_is_refused() -> None:
    packets = list(recorded())
    cut = packets[8]
    packets[8] = CapturedPacket(
        *(getattr(cut, name) for name in CapturedPacket.__slots__[:-1]), cut.head[:144]
    )
    with pytest.raises(WorkloadError, match="144 of 2896 bytes"):
        closed_windows(packets)


def record(kind: int, content_bytes: int) -> bytes:
    """A TLS 1.3 record; what is sealed has its type and 16 bytes of tag behind it."""
    body = bytes(content_bytes + (17 if kind == 23 else 0))
    return bytes((kind, 3, 3)) + struct.pack(">H", len(body)) + body


def test_what_has_left_inside_tls_is_counted_by_whole_records() -> None:
    sent = record(22, 300) + record(20, 1) + record(23, 26) + record(23, 16_384) + record(23, 100)
    syn, syn_ack = recorded()[:2]
    pieces = [sent[at : at + 1448] for at in range(0, len(sent), 1448)]
    packets = [
        seen((nth + 1) * 100, CLIENT, syn.seq + 1 + nth * 1448, piece) for nth, piece in enumerate(pieces)
    ]
    # The second one overtakes the first, and comes again later.
    shuffled = [packets[1], packets[0], packets[1], *packets[2:]]
    (progress,) = sealed_progress([syn, syn_ack, *shuffled]).values()
    last = 100 * len(pieces)
    assert progress[:2] == [(200, 0), (100, 26)]
    assert progress[-2:] == [(last - 100, 26), (last, 26 + 16_384 + 100)]


@pytest.mark.parametrize(
    ("left", "waits"),
    [
        # What was sent before 100 belongs to nothing that was handed over since.
        ([(90, 500), (110, 1500), (150, 9500)], [(200, 300)]),
        ([(90, 500), (110, 1500), (250, 8500), (260, 9500)], [(260, 300)]),
        ([(90, 500), (110, 1500), (250, 8500), (320, 9500)], []),
        ([], []),
    ],
    ids=["at once", "later", "not before it opened", "nothing sent"],
)
def test_the_wire_waits_from_when_the_sidecar_has_nothing_left(
    left: list[tuple[int, int]], waits: list[tuple[int, int]]
) -> None:
    handed = [(105, 1000), (200, 9000), (301, 12_000)]
    assert behind_sidecar([(200, 300)], handed, left, 100) == waits
