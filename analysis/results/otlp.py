"""A run's rounds as OpenTelemetry spans, made and encoded by OpenTelemetry's own SDK.

A trace is a round: a span for the round, below it one for each client, below that the client's segments.
Each pod is a service. There is no convention for federated learning yet, so attributes are ours:
`fl.round`, `fl.client`, `fl.critical`, `ztprobe.component`, `ztprobe.hop`. Ids are drawn from a seed that
the run gives, so the same run gives the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.results.hops import hop_slices, nanoseconds
from ztprobe.errors import UsageError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ("encoded", "send", "spans_of")

_PATIENCE_S = 3  # with the exporter's own retries in it


def spans_of(report: Mapping[str, Any]) -> list[ReadableSpan]:
    """All spans, in the order in which they ended."""
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    from ztprobe import __version__

    class Seeded(IdGenerator):
        """As the SDK's, from a seed."""

        def __init__(self, seed: str) -> None:
            self._random = random.Random(seed)

        def generate_span_id(self) -> int:
            return self._random.randrange(1, 1 << 64)

        def generate_trace_id(self) -> int:
            return self._random.randrange(1, 1 << 128)

    kept = InMemorySpanExporter()
    ids = Seeded(f"{report['experiment']} {report['started_unix_s']}")
    tracers: dict[str, trace.Tracer] = {}

    def tracer(service: str) -> trace.Tracer:
        if service not in tracers:
            resource = Resource({"service.name": service, "service.namespace": report["experiment"]})
            provider = TracerProvider(
                resource=resource, id_generator=ids, sampler=ALWAYS_ON, shutdown_on_exit=False
            )
            provider.add_span_processor(SimpleSpanProcessor(kept))
            tracers[service] = provider.get_tracer("ztprobe", __version__)
        return tracers[service]

    began_ns = nanoseconds(report["started_unix_s"])
    for one in report["rounds"]:
        start_ns = nanoseconds(one["start_s"])
        end_ns = start_ns + nanoseconds(one["duration_s"])
        whole = tracer("server").start_span(
            f"round {one['round']}",
            start_time=began_ns + start_ns,
            context=trace.set_span_in_context(trace.INVALID_SPAN),
            attributes={"fl.round": one["round"], "fl.critical_client": one["critical_client"] or ""},
        )
        for client in one["clients"]:
            way = tracer(client["client"]).start_span(
                f"{client['client']}, round {one['round']}",
                start_time=began_ns + start_ns,
                context=trace.set_span_in_context(whole),
                attributes={
                    "fl.round": one["round"],
                    "fl.client": client["client"],
                    "fl.critical": client["critical"],
                },
            )
            for piece in hop_slices(client, start_ns):
                span = tracer(piece.track[0]).start_span(
                    piece.name,
                    start_time=began_ns + piece.start_ns,
                    context=trace.set_span_in_context(way),
                    attributes={"ztprobe.component": piece.component, "ztprobe.hop": piece.track[1]},
                )
                span.end(began_ns + piece.end_ns)
            way.end(began_ns + end_ns)
        whole.end(began_ns + end_ns)
    return list(kept.get_finished_spans())


def encoded(spans: Sequence[ReadableSpan]) -> bytes:
    """An OTLP ExportTraceServiceRequest (protobuf)."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    return bytes(encode_spans(spans).SerializeToString())


def send(spans: Sequence[ReadableSpan], endpoint: str) -> None:
    """Hand the spans to a collector by OTLP over HTTP.

    :param endpoint: for instance http://127.0.0.1:4318/v1/traces
    :raises UsageError: nobody takes them there.
    """
    import logging

    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # one line of ours says it
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_PATIENCE_S)
    try:
        result = exporter.export(spans)
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]
    if result is not SpanExportResult.SUCCESS:
        raise UsageError(
            f"--endpoint {endpoint}: takes no spans; is an OTLP collector (HTTP) listening there?"
        )
