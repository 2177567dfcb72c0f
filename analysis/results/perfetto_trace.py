"""A run as a Perfetto trace (protobuf), for ui.perfetto.dev: a track for each pod and hop.

Slices are the segments of report.json. Whose sidecar a `proxy` segment means, and which way a wire
segment went, follows from its place: what comes before the client's compute is the model's way down,
what comes after it the update's way up. Flow arrows follow the critical client of each round from slice
to slice. Times are nanoseconds from the first round's start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count, pairwise
from typing import Any, NamedTuple

from analysis.report.wording import PART_NAMES

__all__ = ("perfetto_trace",)

_SEQUENCE = 1
_WIRE = ("propagation", "transmission", "retransmission", "policy_drop")
_AT_THE_CLIENT = ("compute", "dns", "tcp_handshake", "tls_handshake", "http2_setup")


class _Slice(NamedTuple):
    track: tuple[str, str]  # pod, hop
    name: str
    start_ns: int
    end_ns: int


def perfetto_trace(report: Mapping[str, Any]) -> bytes:
    """The trace as bytes. Rounds whose breakdown is withheld have no slices but their own."""
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    builder = TraceProtoBuilder()
    numbers = count(1)
    tracks: dict[tuple[str, str], int] = {}
    processes: dict[str, int] = {}

    def track_of(pod: str, hop: str) -> int:
        if pod not in processes:
            processes[pod] = next(numbers)
            packet = builder.add_packet()
            packet.track_descriptor.uuid = processes[pod]
            packet.track_descriptor.process.pid = len(processes)
            packet.track_descriptor.process.process_name = pod
        if (pod, hop) not in tracks:
            tracks[pod, hop] = next(numbers)
            packet = builder.add_packet()
            packet.track_descriptor.uuid = tracks[pod, hop]
            packet.track_descriptor.parent_uuid = processes[pod]
            packet.track_descriptor.name = hop
        return tracks[pod, hop]

    def add(piece: _Slice, flows: list[int]) -> None:
        for kind, at_ns in (
            (TrackEvent.TYPE_SLICE_BEGIN, piece.start_ns),
            (TrackEvent.TYPE_SLICE_END, piece.end_ns),
        ):
            uuid = track_of(*piece.track)
            packet = builder.add_packet()
            packet.timestamp = at_ns
            packet.trusted_packet_sequence_id = _SEQUENCE
            packet.track_event.type = kind
            packet.track_event.track_uuid = uuid
            if kind == TrackEvent.TYPE_SLICE_BEGIN:
                packet.track_event.name = piece.name
                packet.track_event.flow_ids.extend(flows)

    arrows = count(1)
    for one in report["rounds"]:
        start_ns = _ns(one["start_s"])
        add(
            _Slice(("rounds", "round"), f"round {one['round']}", start_ns, start_ns + _ns(one["duration_s"])),
            [],
        )
        for client in one["clients"]:
            pieces = list(_slices(client, start_ns))
            links = {i: next(arrows) for i, _ in enumerate(pairwise(pieces))} if client["critical"] else {}
            for index, piece in enumerate(pieces):
                add(piece, [links[i] for i in (index - 1, index) if i in links])
    return bytes(builder.serialize())


def _slices(client: Mapping[str, Any], start_ns: int) -> Iterator[_Slice]:
    segments = client["segments"]
    name = client["client"]
    # Bytes have come to the client once it computes; without that, all is the way down.
    turned = next((i for i, (part, *_) in enumerate(segments) if part == "compute"), len(segments))
    for index, (part, from_s, to_s) in enumerate(segments):
        down = index < turned
        if part in _WIRE:
            track = (name, "wire, model" if down else "wire, update")
        elif part in _AT_THE_CLIENT:
            track = (name, "application")
        elif part == "proxy":
            sent = any(one in _WIRE for one, *_ in (segments[:index] if down else segments[turned:index]))
            track = (name if down == sent else "server", f"sidecar, {name}")
        elif part == "server":
            track = ("server", f"application, {name}")
        else:
            track = (name, "not explained")
        yield _Slice(track, PART_NAMES[part], start_ns + _ns(from_s), start_ns + _ns(to_s))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
