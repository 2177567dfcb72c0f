"""An OpenTelemetry collector for tests: takes OTLP over HTTP, and decodes what it is sent."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

__all__ = ("Collector", "attributes_of", "spans_in")


def spans_in(content: bytes) -> list[tuple[str, trace_pb2.Span]]:
    """Service and span, of a request to export."""
    request = ExportTraceServiceRequest.FromString(content)
    found = []
    for resource in request.resource_spans:
        (service,) = (a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
        found += [(service, span) for scope in resource.scope_spans for span in scope.spans]
    return found


def attributes_of(span: trace_pb2.Span) -> dict[str, object]:
    """By their names."""
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


class Collector:
    """Listens on the loopback of the namespace that it is made in; a context manager."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []  # path, body
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                requests.append(
                    (self.path, gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
                )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def spans(self) -> list[tuple[str, trace_pb2.Span]]:
        """All that have come."""
        return [one for _, body in self.requests for one in spans_in(body)]
