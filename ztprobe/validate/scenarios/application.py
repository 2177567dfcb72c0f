"""Costs in the applications: training, aggregation, a CPU that is shared, and two costs at once."""

from __future__ import annotations

from collections.abc import Mapping

from ztprobe.errors import WorkloadError
from ztprobe.validate.comparison import RunEvidence, injected_part, slack, sub_row
from ztprobe.validate.inject.cpu import Competitor
from ztprobe.validate.model import Bound
from ztprobe.validate.observe import truth
from ztprobe.validate.scenarios.plan import (
    OTHER,
    SERVER,
    TARGET,
    Claim,
    Plan,
    both_ways,
    critical,
    per_round,
)
from ztprobe.validate.scenarios.setup import SYN_ACK, TCP_HANDSHAKE, hold

__all__ = ("busy", "cpu", "not_critical", "server", "sleep", "two_at_once")


def _server_whole_ns(evidence: RunEvidence, number: int) -> int:
    """To the model's first byte on the wire, and from the update's last one to the round's end."""
    start_ns, end_ns = evidence.span(number)
    model, update = both_ways(evidence, number)
    arrived = update.transmission
    if not model.sent or arrived is None:
        raise WorkloadError(f"round {number}: the capture misses the model or the update")
    return model.sent[0].ts_ns - start_ns + end_ns - arrived[1]


def _compute_whole_ns(evidence: RunEvidence, number: int) -> int:
    """From the model's last byte to the update's first, where the application is: beside its sidecar."""
    received, written = evidence.at_application(number, evidence.target)
    if received.transmission is None or not written.sent:
        raise WorkloadError(f"round {number}: the capture misses the model or the update")
    return written.sent[0].ts_ns - received.transmission[1]


_WORK_BOUND = Bound(absolute_ms=2, relative=0.02)
_AGGREGATION = Claim(
    "server", _WORK_BOUND, injected_part("server", "aggregation", _server_whole_ns, pod=SERVER)
)


def _compute(kind: str, where: str = "compute") -> Claim:
    return Claim(where, _WORK_BOUND, injected_part("compute", kind, _compute_whole_ns))


def server(sizes: Mapping[int, float]) -> Plan:
    """The server sleeps at the end of aggregation."""
    return Plan(
        claims=(_AGGREGATION,), environment=critical() | {"FL_INJECT_AGGREGATION_MS": per_round(sizes)}
    )


def sleep(sizes: Mapping[int, float]) -> Plan:
    """The target sleeps at the end of training; a busy loop makes it critical."""
    return Plan(
        claims=(_compute("sleep"),),
        environment={
            "FL_INJECT_COMPUTE_BUSY_MS": f"{TARGET}={per_round({}, 400.0)}",
            "FL_INJECT_COMPUTE_SLEEP_MS": f"{TARGET}={per_round(sizes)}",
        },
    )


def busy(sizes: Mapping[int, float]) -> Plan:
    """The target computes on at the end of training."""
    return Plan(
        claims=(_compute("busy"),),
        environment=critical() | {"FL_INJECT_COMPUTE_BUSY_MS": f"{TARGET}={per_round(sizes)}"},
    )


# CPU


def cpu(sizes: Mapping[int, float]) -> Plan:
    """Busy loops on the target's only CPU, against its thread's own schedstat."""

    def waited_ns(evidence: RunEvidence, number: int) -> int:
        begun, ended = evidence.logged(evidence.target, number, "cpu_wait")
        return int(ended["cpu_wait_ns"] - begun["cpu_wait_ns"])

    def training(evidence: RunEvidence, number: int) -> list[truth.Interval]:
        begun, ended = (
            evidence.logged(evidence.target, number, f"train_{edge}") for edge in ("start", "end")
        )
        return [(begun[0]["time_monotonic_ns"], ended[0]["time_monotonic_ns"])]

    claim = Claim(
        "CPU waiting", Bound(relative=0.05), sub_row("compute", "cpu_wait", waited_ns, within=training)
    )
    return Plan(
        claims=(claim,),
        injectors=(Competitor(TARGET, "client", {k: int(n) for k, n in sizes.items()}),),
        environment=critical() | {"FL_LOG_CPU_WAIT": "1", "FL_MAX_SAMPLES": "640"},
    )


# who is not critical, and two at once


def not_critical(sizes: Mapping[int, float]) -> Plan:
    """The other client sleeps, and the target decides the round."""

    def leaked_ns(evidence: RunEvidence, number: int) -> int:
        return abs(evidence.rounds[number].components_ns["compute"] - _compute_whole_ns(evidence, number))

    sleeps = f"{TARGET}={per_round({}, 900.0)};{OTHER}={per_round(sizes)}"
    return Plan(
        claims=(
            Claim("slack", Bound(absolute_ms=2), slack(OTHER, leaked_ns)),
            _compute("sleep", "critical: compute"),
        ),
        environment={"FL_INJECT_COMPUTE_SLEEP_MS": sleeps},
    )


def two_at_once(sizes: Mapping[int, float]) -> Plan:
    """A handshake and the aggregation take longer, in opposite orders of size."""
    held = hold("syn-ack", SYN_ACK, sizes, TCP_HANDSHAKE)
    # The other cost runs the other way, so that neither can be told from the other's size.
    sleeps = {k: max(sizes.values()) + min(sizes.values()) - ms for k, ms in sizes.items()}
    return Plan(
        claims=(TCP_HANDSHAKE, _AGGREGATION),
        injectors=held.injectors,
        environment=critical() | {"FL_INJECT_AGGREGATION_MS": per_round(sleeps)},
    )
