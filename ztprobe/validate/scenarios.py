"""The scenarios: which cost is put where, in which surroundings, and in which sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ztprobe.errors import UsageError
from ztprobe.validate import plans
from ztprobe.validate.plans import Plan

__all__ = ("SCENARIOS", "Scenario", "choose")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One run with a different size of the cost in every round.

    :param sizes: per round from the first; None: nothing is put there. The first round is never compared.
    :param make: sizes by round -> the run's plan.
    """

    name: str
    title: str
    experiment: str
    background: str
    sizes: Sequence[float | None]
    unit: str
    make: Callable[[Mapping[int, float]], Plan]
    reconnect: bool = False
    offloads: bool = True
    clients: int = 2

    @property
    def by_round(self) -> dict[int, float]:
        """Round -> size, for the rounds that have one."""
        return {k: size for k, size in enumerate(self.sizes, 1) if size is not None}

    def label(self, size: float) -> str:
        """A size with its unit."""
        return f"{size:g} {self.unit}"


def _repeat(sizes: Sequence[float | None], times: int) -> list[float | None]:
    # None first: round 1 is never compared.
    return [None, *list(sizes) * times]


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        name="server-delay",
        title="a known delay in aggregation",
        experiment="net0-sec0",
        background="2 clients",
        sizes=_repeat((20, 50, 100, 200), 3),
        unit="ms",
        make=plans.server,
    ),
    Scenario(
        name="compute-sleep",
        title="a known sleep in training",
        experiment="net0-sec3",
        background="2 clients, mutual TLS",
        sizes=_repeat((20, 50, 100, 200), 3),
        unit="ms",
        make=plans.sleep,
    ),
    Scenario(
        name="compute-busy",
        title="a known busy loop in training",
        experiment="net0-sec0",
        background="2 clients",
        sizes=_repeat((20, 50, 100, 200), 3),
        unit="ms",
        make=plans.busy,
    ),
    Scenario(
        name="proxy-stop",
        title="idle sidecar stopped before the update's first byte",
        experiment="net0-sec3",
        background="2 clients, mutual TLS",
        sizes=_repeat((1, 5, 20), 4),
        unit="ms",
        make=plans.proxy,
    ),
    Scenario(
        name="syn-ack-held",
        title="SYN-ACK held",
        experiment="net0-sec3",
        background="2 clients, mutual TLS",
        sizes=_repeat((5, 20, 80, 300), 3),
        unit="ms",
        make=plans.syn_ack,
        reconnect=True,
    ),
    Scenario(
        name="syn-dropped",
        title="SYN dropped (1 s timer)",
        experiment="net0-sec0",
        background="2 clients",
        sizes=_repeat((1, 2), 3),
        unit="SYN",
        make=plans.syn_drop,
        reconnect=True,
    ),
    Scenario(
        name="server-hello-held",
        title="ServerHello held",
        experiment="net0-sec3",
        background="2 clients, policies",
        sizes=_repeat((5, 20, 80, 150), 3),
        unit="ms",
        make=plans.server_hello,
        reconnect=True,
    ),
    Scenario(
        name="dns-held",
        title="DNS answers held",
        experiment="net0-sec0",
        background="2 clients",
        sizes=_repeat((5, 20, 80), 3),
        unit="ms",
        make=plans.dns,
        reconnect=True,
    ),
    Scenario(
        name="delay-stepped",
        title="profile delay stepped",
        experiment="net0-sec0",
        background="2 clients",
        sizes=_repeat((10, 20, 40, 80, 160), 2),
        unit="ms",
        make=plans.propagation,
    ),
    Scenario(
        name="rate-stepped",
        title="rate stepped",
        experiment="net0-sec0",
        background="2 clients share the server's interface",
        sizes=_repeat((100, 50, 20, 10, 5), 1),
        unit="Mbit/s",
        make=plans.rate,
    ),
    Scenario(
        name="segment-dropped",
        title="data segments of the update dropped once",
        experiment="net0-sec0",
        background="2 clients, 20 ms delay",
        sizes=_repeat((1, 2, 3), 3),
        unit="segments",
        make=plans.retransmission,
        offloads=False,
    ),
    Scenario(
        name="loss",
        title="1 % loss",
        experiment="net0-sec0",
        background="2 clients, 20 ms delay",
        sizes=_repeat((1,), 3),
        unit="%",
        make=plans.loss,
        offloads=False,
    ),
    Scenario(
        name="port-blocked",
        title="the server's port blocked, then opened",
        experiment="net0-sec1",
        background="2 clients, policies, 20 ms delay",
        sizes=_repeat((300, 1300), 3),
        unit="ms",
        make=plans.port_blocked,
        reconnect=True,
    ),
    Scenario(
        name="dns-blocked",
        title="UDP port 53 blocked, then opened",
        experiment="net0-sec1",
        background="2 clients, policies",
        sizes=_repeat((300,), 3),
        unit="ms",
        make=plans.dns_blocked,
        reconnect=True,
    ),
    Scenario(
        name="cpu-contended",
        title="busy competitors pinned beside the client",
        experiment="net0-sec0",
        background="2 clients",
        sizes=_repeat((1, 2), 4),
        unit="loops",
        make=plans.cpu,
    ),
    Scenario(
        name="not-critical",
        title="a sleep in a client that is not critical",
        experiment="net0-sec0",
        background="2 clients",
        sizes=_repeat((50, 100, 200), 3),
        unit="ms",
        make=plans.not_critical,
    ),
    Scenario(
        name="two-at-once",
        title="SYN-ACK held and a delay in aggregation, the other way round",
        experiment="net0-sec0",
        background="2 clients",
        sizes=_repeat((20, 80, 200), 3),
        unit="ms",
        make=plans.two_at_once,
        reconnect=True,
    ),
)


def choose(names: Sequence[str]) -> list[Scenario]:
    """The named scenarios in their own order; all without names. :raises UsageError: one is unknown."""
    known = [scenario.name for scenario in SCENARIOS]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown scenario {name!r}; valid ones: {', '.join(known)}")
    return [scenario for scenario in SCENARIOS if not names or scenario.name in names]
