"""The agent's figures for Prometheus: what it sees, watches, holds, hands on, loses, and is told of rounds.

Labels are what is fixed when the agent is built (kinds of events, channels of loss), and pods and reasons for
drops, of which a cluster has any number: as many as `ztprobe.agent.tally` lists, and "other" for the rest.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ztprobe.agent.counts import BEYOND, HANDSHAKE_BOUNDS_S, OTHER, Counts
from ztprobe.agent.service.http_server import HttpServer
from ztprobe.agent.service.round_metrics import round_families
from ztprobe.agent.service.wire import TlsFiles
from ztprobe.errors import PreflightError, UsageError
from ztprobe.events.rings import RINGS
from ztprobe.rundir.schema import LOSS_CHANNELS

__all__ = ("Metrics",)

_QUEUE_FULL = "queue_full"  # those that reached the agent and were lost then: events_lost
_MISSED = tuple(channel for channel in LOSS_CHANNELS if channel != _QUEUE_FULL)


class Metrics:
    """Answers GET /metrics until `close`: to this machine alone, or to those with a certificate.

    :param listen: ADDRESS:PORT; one that others can reach needs certificates.
    :param status: what `ztprobe.agent.service.server.AgentServer.status` gives.
    :param delivered: events that collectors have acknowledged, by kind.
    :param tally: what was seen, and told of rounds, since the service began.
    :raises UsageError: others could read it without a certificate.
    :raises PreflightError: it cannot listen there.
    """

    def __init__(
        self,
        listen: str,
        tls: TlsFiles | None,
        status: Callable[[], Mapping[str, Any]],
        delivered: Mapping[str, int],
        tally: Callable[[], Counts],
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
        registry.register(_Figures(status, delivered, tally))
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

    def __init__(
        self,
        status: Callable[[], Mapping[str, Any]],
        delivered: Mapping[str, int],
        tally: Callable[[], Counts],
    ) -> None:
        self._status = status
        self._delivered = delivered
        self._tally = tally

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
        counts = self._tally()
        yield from _seen(counts)
        yield from round_families(counts)


def _seen(counts: Counts) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    for name, help_, counted in (
        ("connections", "Connections that pods asked for.", "connections_asked"),
        ("retransmissions", "Segments that pods' TCP sent again.", "retransmissions"),
    ):
        yield CounterMetricFamily(f"ztprobe_agent_{name}", help_, counts.get(counted, {}).get("", 0))
    handshakes, buckets, there = counts.get("handshakes", {}), [], 0.0
    for bound in (*map(str, HANDSHAKE_BOUNDS_S), BEYOND):
        there += handshakes.get(bound, 0)
        buckets.append((bound, there))
    yield HistogramMetricFamily(
        "ztprobe_agent_handshake_seconds",
        "Of connections that pods opened: from the first SYN to its answer.",
        buckets,
        counts.get("handshakes_s", {}).get("", 0),
    )
    for name, help_, label, fixed, counted in (
        ("drops", "Packets that the kernel dropped.", "reason", (OTHER,), "drops"),
        ("events_missed", "Events that did not reach the agent whole.", "channel", _MISSED, "lost"),
    ):
        family = CounterMetricFamily(f"ztprobe_agent_{name}", help_, labels=[label])
        for value, number in (dict.fromkeys(fixed, 0.0) | counts.get(counted, {})).items():
            if value != _QUEUE_FULL:
                family.add_metric([value], number)
        yield family
    for name, help_, ways in (
        (
            "communication_seconds",
            "Of messages on pods' interfaces: from the first byte to the last.",
            (("sent", "sending_s"), ("received", "receiving_s")),
        ),
        (
            "communication_bytes",
            "Payload of messages on pods' interfaces.",
            (("sent", "sent_bytes"), ("received", "received_bytes")),
        ),
    ):
        family = CounterMetricFamily(f"ztprobe_agent_{name}", help_, labels=["pod", "direction"])
        for direction, counted in ways:
            for pod, number in counts.get(counted, {}).items():
                family.add_metric([pod, direction], number)
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
