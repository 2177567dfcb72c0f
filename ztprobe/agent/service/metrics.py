"""The agent's own figures for Prometheus: what it watches, holds, hands on and loses.

Labels are what is fixed when the agent is built: kinds of events. Names of pods, runs and clients come from
a cluster without a bound, and are in `ztprobe agent status`.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ztprobe.agent.service.http_server import HttpServer
from ztprobe.agent.service.wire import TlsFiles
from ztprobe.errors import PreflightError, UsageError
from ztprobe.events.tables import RINGS

__all__ = ("Metrics",)


class Metrics:
    """Answers GET /metrics until `close`: to this machine alone, or to those with a certificate.

    :param listen: ADDRESS:PORT; one that others can reach needs certificates.
    :param status: what `ztprobe.agent.service.server.AgentServer.status` gives.
    :param delivered: events that collectors have acknowledged, by kind.
    :raises UsageError: others could read it without a certificate.
    :raises PreflightError: it cannot listen there.
    """

    def __init__(
        self,
        listen: str,
        tls: TlsFiles | None,
        status: Callable[[], Mapping[str, Any]],
        delivered: Mapping[str, int],
    ) -> None:
        from prometheus_client import CollectorRegistry, make_wsgi_app

        host, colon, port = listen.rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65535:
            raise UsageError(f"--metrics {listen}: expected ADDRESS:PORT")
        host, context = host.strip("[]"), None
        if not _is_loopback(host):
            if tls is None:
                raise UsageError(
                    f"--metrics {listen}: others could read it; take 127.0.0.1:{port}, or give --cert, --key"
                    " and --client-ca"
                )
            context = _context(listen, tls)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Figures(status, delivered))
        try:
            self._server = HttpServer(host, int(port), make_wsgi_app(registry), context)
        except OSError as error:
            raise PreflightError(f"--metrics {listen}: {error.strerror or error}") from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Answer no more."""
        self._server.close()


class _Figures:
    # A collector in prometheus_client's sense: asked at each scrape.

    def __init__(self, status: Callable[[], Mapping[str, Any]], delivered: Mapping[str, int]) -> None:
        self._status = status
        self._delivered = delivered

    def describe(self) -> list[Any]:
        return []  # registering must not ask the agent

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        status = self._status()
        sessions = status["sessions"]
        watching = [session for session in sessions if session["watching"]]
        memory = [status["memory"], *(session["memory"] for session in watching if session["memory"])]
        queues = [session["queue"] for session in sessions]
        for name, help_, value in (
            ("sessions", "Runs that the agent watches.", len(watching)),
            ("pods", "Pods that it watches.", sum(len(session["pods"]) for session in watching)),
            ("profiles", "Runs whose profile is in force.", sum(bool(s["profile"]) for s in watching)),
            ("leases", "Leases on the node's pods.", len(status["leases"])),
            ("resident_bytes", "Of its processes.", sum(held["resident_bytes"] for held in memory)),
            ("kernel_maps_bytes", "Of its maps.", sum(held["kernel_maps_bytes"] for held in memory)),
            ("queue_bytes", "Events that wait for a collector.", sum(queue["bytes"] for queue in queues)),
            ("queue_events", "Events that wait for a collector.", sum(queue["rows"] for queue in queues)),
            ("lacks", "Capabilities that it would need and has not.", len(status["lacks"])),
            ("start_time_seconds", "When it started, Unix time.", status["since_unix_s"]),
        ):
            yield GaugeMetricFamily(f"ztprobe_agent_{name}", help_, value)
        for name, help_, counted in (
            ("events_delivered", "Events that a collector has taken.", self._delivered),
            (
                "events_lost",
                "Events of the runs that are there for which the queue had no room.",
                {kind: sum(queue["lost"].get(kind, 0) for queue in queues) for kind in RINGS},
            ),
        ):
            family = CounterMetricFamily(f"ztprobe_agent_{name}", help_, labels=["kind"])
            for kind in RINGS:
                family.add_metric([kind], counted.get(kind, 0))
            yield family


def _context(listen: str, tls: TlsFiles) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls.authority))
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise PreflightError(f"--metrics {listen}: {error.strerror or error}") from error
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
