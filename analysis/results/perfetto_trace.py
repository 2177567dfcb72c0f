"""A run as a Perfetto trace (protobuf), for ui.perfetto.dev: a track for each pod and hop.

Slices are the segments of report.json on their hops. Flow arrows follow the critical client of each
round from slice to slice. Times are nanoseconds from the first round's start.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, pairwise
from typing import Any

from analysis.results.hops import HopSlice, hop_slices, nanoseconds

__all__ = ("perfetto_trace",)

_SEQUENCE = 1


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

    def add(piece: HopSlice, flows: list[int]) -> None:
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
        start_ns = nanoseconds(one["start_s"])
        end_ns = start_ns + nanoseconds(one["duration_s"])
        add(HopSlice(("rounds", "round"), f"round {one['round']}", "round", start_ns, end_ns), [])
        for client in one["clients"]:
            pieces = list(hop_slices(client, start_ns))
            links = {i: next(arrows) for i, _ in enumerate(pairwise(pieces))} if client["critical"] else {}
            for index, piece in enumerate(pieces):
                add(piece, [links[i] for i in (index - 1, index) if i in links])
    return bytes(builder.serialize())
