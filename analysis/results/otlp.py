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
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.trace import Span, Tracer

__all__ = ("encoded", "send", "spans_of")

_PATIENCE_S = 3  # for each batch, with the exporter's own retries in it
_BATCH = 512  # spans, as the SDK's own processor sends them


def spans_of(report: Mapping[str, Any]) -> list[ReadableSpan]:
    """All spans, in the order in which they ended."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    spans = _Spans(kept, report["experiment"], report["started_unix_s"])
    for one in report["rounds"]:
        _round(spans, one)
    return list(kept.get_finished_spans())


def _round(spans: _Spans, one: Mapping[str, Any]) -> None:
    start_ns = nanoseconds(one["start_s"])
    end_ns = start_ns + nanoseconds(one["duration_s"])
    whole = spans.begin(
        "server",
        f"round {one['round']}",
        start_ns,
        {"fl.round": one["round"], "fl.critical_client": one["critical_client"] or ""},
    )
    for client in one["clients"]:
        way = spans.begin(
            client["client"],
            f"{client['client']}, round {one['round']}",
            start_ns,
            {"fl.round": one["round"], "fl.client": client["client"], "fl.critical": client["critical"]},
            below=whole,
        )
        for piece in hop_slices(client, start_ns):
            pod, hop = piece.track
            about = {"ztprobe.component": piece.component, "ztprobe.hop": hop}
            spans.end(spans.begin(pod, piece.name, piece.start_ns, about, below=way), piece.end_ns)
        spans.end(way, end_ns)
    spans.end(whole, end_ns)


class _Spans:
    # Spans of a run's services; times are nanoseconds from the first round's start.

    def __init__(self, kept: SpanExporter, experiment: str, started_unix_s: float) -> None:
        self._kept = kept
        self._experiment = experiment
        self._began_ns = nanoseconds(started_unix_s)
        self._ids = _seeded_ids(f"{experiment} {started_unix_s}")
        self._tracers: dict[str, Tracer] = {}

    def begin(
        self, service: str, name: str, start_ns: int, about: Mapping[str, Any], below: Span | None = None
    ) -> Span:
        from opentelemetry import trace

        return self._tracer(service).start_span(
            name,
            start_time=self._began_ns + start_ns,
            context=trace.set_span_in_context(trace.INVALID_SPAN if below is None else below),
            attributes=about,
        )

    def end(self, span: Span, end_ns: int) -> None:
        span.end(self._began_ns + end_ns)

    def _tracer(self, service: str) -> Tracer:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        from ztprobe import __version__

        if service not in self._tracers:
            provider = TracerProvider(
                resource=Resource({"service.name": service, "service.namespace": self._experiment}),
                id_generator=self._ids,
                sampler=ALWAYS_ON,
                shutdown_on_exit=False,
            )
            provider.add_span_processor(SimpleSpanProcessor(self._kept))
            self._tracers[service] = provider.get_tracer("ztprobe", __version__)
        return self._tracers[service]


def _seeded_ids(seed: str) -> IdGenerator:
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Seeded(IdGenerator):
        """As the SDK's, from a seed."""

        def __init__(self) -> None:
            self._random = random.Random(seed)

        def generate_span_id(self) -> int:
            return self._random.randrange(1, 1 << 64)

        def generate_trace_id(self) -> int:
            return self._random.randrange(1, 1 << 128)

    return Seeded()


def encoded(spans: Sequence[ReadableSpan]) -> bytes:
    """An OTLP ExportTraceServiceRequest (protobuf)."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    return bytes(encode_spans(spans).SerializeToString())


def send(spans: Sequence[ReadableSpan], endpoint: str, *, option: str = "--endpoint") -> None:
    """Hand the spans to a collector by OTLP over HTTP, some hundreds at a time.

    :param endpoint: for instance http://127.0.0.1:4318/v1/traces
    :param option: how the endpoint was given.
    :raises UsageError: nobody takes them there.
    """
    import logging

    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # one line of ours says it
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_PATIENCE_S)
    try:
        taken = all(
            exporter.export(spans[begin : begin + _BATCH]) is SpanExportResult.SUCCESS
            for begin in range(0, len(spans), _BATCH)
        )
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]
    if not taken:
        raise UsageError(f"{option} {endpoint}: takes no spans; is an OTLP collector (HTTP) listening there?")
