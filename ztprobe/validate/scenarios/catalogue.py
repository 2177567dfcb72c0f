"""The scenarios: which cost is put where, in which surroundings, and in which sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ztprobe.errors import UsageError
from ztprobe.validate.scenarios import application as apps
from ztprobe.validate.scenarios import http2 as http2
from ztprobe.validate.scenarios import setup as setup
from ztprobe.validate.scenarios import stops as stops
from ztprobe.validate.scenarios import wire as wire
from ztprobe.validate.scenarios.plan import Plan

__all__ = ("CLIENTS", "SCENARIOS", "Scenario", "choose")

CLIENTS = 2


class Scenario(NamedTuple):
    """One run with a different size of the cost in every round.

    :param make: sizes by round -> the run's plan.
    :param once: the sizes, each of which comes ``times`` times, in turns; round 1 has none.
    :param beside: what else goes on, besides a second client and what the experiment's name says.
    :param reconnect: a new connection per client and round.
    """

    name: str
    title: str
    experiment: str
    make: Callable[[Mapping[int, float]], Plan]
    once: tuple[float, ...]
    unit: str
    times: int
    beside: str = ""
    reconnect: bool = False
    offloads: bool = True

    @property
    def sizes(self) -> Sequence[float | None]:
        """Per round from the first; None: nothing is put there. The first round is never compared."""
        return [None, *self.once * self.times]

    @property
    def by_round(self) -> dict[int, float]:
        """Round -> size, for the rounds that have one."""
        return {k: size for k, size in enumerate(self.sizes, 1) if size is not None}

    @property
    def background(self) -> str:
        """What else goes on."""
        return f"{CLIENTS} clients{', ' if self.beside else ''}{self.beside}"

    def label(self, size: float) -> str:
        """A size with its unit."""
        return f"{size:g} {self.unit}"


_WORK_MS = (20, 50, 100, 200)
_STOP_MS = (1, 5, 20)
_DELAY_MS = (10, 20, 40, 80, 160)
# Where a way becomes longer, cubic's slow start takes that for a queue, and ends.
_FALLING_MS = (40, 40, 40, 20, 20, 20, 10, 10, 10)
_H2 = "windows of 8 kB to 1 MB"
_MTLS, _D10, _D20, _SMALL = "mutual TLS", "10 ms delay", "20 ms delay", "messages of 13.7 kB"

# fmt: off
SCENARIOS = (
    Scenario("server-delay", "a known delay in aggregation", "net0-sec0", apps.server, _WORK_MS, "ms", 3),
    Scenario("compute-sleep", "a known sleep in training", "net0-sec3", apps.sleep, _WORK_MS, "ms", 3, _MTLS),
    Scenario("compute-busy", "a known busy loop in training", "net0-sec0", apps.busy, _WORK_MS, "ms", 3),
    Scenario("proxy-stop", "client's sidecar stopped before the update's first byte", "net0-sec3",
             stops.client_sidecar, _STOP_MS, "ms", 4, _MTLS),
    Scenario("proxy-stop-server", "server's sidecar stopped before the model's first byte", "net0-sec3",
             stops.server_sidecar, _STOP_MS, "ms", 4, _MTLS),
    Scenario("proxy-stop-down", "client's sidecar stopped before the model arrives", "net0-sec3",
             stops.client_sidecar_down, _STOP_MS, "ms", 4, f"{_MTLS}, {_SMALL}"),
    Scenario("server-stalled", "server stopped amid the update, behind its sidecar", "net0-sec3",
             stops.server_application, (50, 100, 200), "ms", 3, _MTLS),
    Scenario("syn-ack-held", "SYN-ACK held", "net0-sec3",
             setup.syn_ack, (5, 20, 80, 300), "ms", 3, _MTLS, reconnect=True),
    Scenario("syn-dropped", "SYN dropped (1 s timer)", "net0-sec0",
             setup.syn_drop, (1, 2), "SYN", 3, reconnect=True),
    Scenario("server-hello-held", "ServerHello held", "net0-sec3",
             setup.server_hello, (5, 20, 80, 150), "ms", 3, _MTLS, reconnect=True),
    Scenario("second-flight-held", "client's second flight held inside its pod", "net0-sec3",
             setup.second_flight, (5, 20, 80, 150), "ms", 3, f"{_MTLS}, {_D20}", reconnect=True),
    Scenario("dns-held", "DNS answers held", "net0-sec0",
             setup.dns, (5, 20, 80), "ms", 3, reconnect=True),
    Scenario("delay-stepped", "profile delay stepped", "net0-sec0", wire.propagation, _DELAY_MS, "ms", 2),
    Scenario("delay-small", "profile delay stepped, below the initial window", "net0-sec0",
             wire.small_messages, _DELAY_MS, "ms", 3, _SMALL),
    Scenario("rate-stepped", "rate stepped", "net0-sec0", wire.rate, (100, 50, 20, 10, 5), "Mbit/s", 1,
             "one interface at the server"),
    Scenario("window-closed", "server stops reading amid the update", "net0-sec0",
             wire.receive_window, (100, 200, 400), "ms", 3, _D10),
    Scenario("http2-window", "small HTTP/2 windows, profile delay stepped", "net0-sec0",
             http2.small_window, _FALLING_MS, "ms", 1, _H2),
    Scenario("http2-window-tls", "small HTTP/2 windows inside TLS, profile delay stepped", "net0-sec3",
             http2.sealed_window, _FALLING_MS, "ms", 1, f"{_MTLS}, {_H2}"),
    Scenario("http2-update-held", "the update's first WINDOW_UPDATE held", "net0-sec0",
             http2.update_held, (20, 50, 100, 150), "ms", 3, f"{_D10}, {_H2}"),
    Scenario("http2-held-tls", "the update's first WINDOW_UPDATE held, inside TLS", "net0-sec3",
             http2.sealed_update_held, (20, 50, 100, 150), "ms", 3, f"{_MTLS}, {_D10}, {_H2}"),
    Scenario("segment-dropped", "data segments of the update dropped once", "net0-sec0",
             wire.retransmission, (1, 2, 3), "segments", 3, _D20, offloads=False),
    Scenario("loss", "1 % loss", "net0-sec0", wire.loss, (1,), "%", 3, _D20, offloads=False),
    Scenario("port-blocked", "the server's port blocked, then opened", "net0-sec1",
             setup.port_blocked, (300, 1300), "ms", 3, f"policies, {_D20}", reconnect=True),
    Scenario("data-blocked", "data blocked amid the update, then let through", "net0-sec1",
             wire.blocked_live, (20, 70, 300, 1300), "ms", 3, f"policies, {_D20}"),
    Scenario("dns-blocked", "UDP port 53 blocked, then opened", "net0-sec1",
             setup.dns_blocked, (300, 2500), "ms", 2, "policies", reconnect=True),
    Scenario("cpu-contended", "busy competitors pinned beside the client", "net0-sec0",
             apps.cpu, (1, 2), "loops", 4),
    Scenario("not-critical", "a sleep in a client that is not critical", "net0-sec0",
             apps.not_critical, (50, 100, 200), "ms", 3),
    Scenario("two-at-once", "SYN-ACK held and a delay in aggregation, the other way round", "net0-sec0",
             apps.two_at_once, (20, 80, 200), "ms", 3, reconnect=True),
)
# fmt: on


def choose(names: Sequence[str]) -> list[Scenario]:
    """The named scenarios in their own order; all without names. :raises UsageError: one is unknown."""
    known = [scenario.name for scenario in SCENARIOS]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown scenario {name!r}; valid ones: {', '.join(known)}")
    return [scenario for scenario in SCENARIOS if not names or scenario.name in names]
