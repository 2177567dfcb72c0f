"""Costs of processes that stand still: a sidecar before a message, an application in the middle of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ztprobe.validate.comparison import RunEvidence, noted_part
from ztprobe.validate.inject.stops import ProcessStop, ReceiveBuffer, StopMoment
from ztprobe.validate.model import Bound
from ztprobe.validate.observe import truth
from ztprobe.validate.scenarios.plan import SERVER, TARGET, Claim, Plan, critical, per_round

__all__ = ("client_sidecar", "client_sidecar_down", "server_application", "server_sidecar")

_SMALL_BUFFER_BYTES = 512 << 10
_BOUND = Bound(absolute_ms=0.2, relative=0.05)


# The server aggregates for so long, so that what carries the model is idle before it comes.
_PAUSE = {"FL_INJECT_AGGREGATION_MS": per_round({}, 400.0)}
_TRAINING = (TARGET, "train_start")
_AGGREGATING = (SERVER, "wait_end")


def _sidecar(
    sizes: Mapping[int, float],
    pod: str,
    moment: StopMoment,
    announced: tuple[str, str],
    whole: Callable[[RunEvidence, int], truth.Interval | None],
    **environment: str,
) -> Plan:
    return Plan(
        claims=(Claim("proxy", _BOUND, noted_part("proxy", "stop", whole, pod=pod)),),
        injectors=(ProcessStop(pod, "proxy", moment, sizes, announced=announced),),
        environment=critical() | environment,
    )


def client_sidecar(sizes: Mapping[int, float]) -> Plan:
    """The client's, before the update's first byte."""

    def whole(evidence: RunEvidence, number: int) -> truth.Interval | None:
        _, written = evidence.at_application(number, evidence.target)
        wire = evidence.link(number, evidence.target, down=False)
        return (written.sent[0].ts_ns, wire.sent[0].ts_ns) if written.sent and wire.sent else None

    return _sidecar(sizes, TARGET, StopMoment(pod=TARGET), _TRAINING, whole)


def server_sidecar(sizes: Mapping[int, float]) -> Plan:
    """The server's, before the model's first byte; it serves every client."""

    def whole(evidence: RunEvidence, number: int) -> truth.Interval | None:
        written, _ = evidence.at_server(number)
        wire = evidence.link(number, evidence.target, down=True)
        return (written.sent[0].ts_ns, wire.sent[0].ts_ns) if written.sent and wire.sent else None

    return _sidecar(sizes, SERVER, StopMoment(pod=SERVER, flows=2), _AGGREGATING, whole, **_PAUSE)


def client_sidecar_down(sizes: Mapping[int, float]) -> Plan:
    """The client's, before the model arrives: a small one, which the wire is done with meanwhile."""

    def whole(evidence: RunEvidence, number: int) -> truth.Interval | None:
        arrived = evidence.link(number, evidence.target, down=True).transmission
        delivered, _ = evidence.at_application(number, evidence.target)
        return (arrived[1], delivered.transmission[1]) if arrived and delivered.transmission else None

    moment = StopMoment(pod=TARGET, peer=SERVER)
    return _sidecar(sizes, TARGET, moment, _AGGREGATING, whole, FL_MODEL="narrow", **_PAUSE)


def server_application(sizes: Mapping[int, float]) -> Plan:
    """The server itself, in the middle of an update: its sidecar has bytes that nobody reads."""

    def whole(evidence: RunEvidence, number: int) -> truth.Interval | None:
        arrived = evidence.link(number, evidence.target, down=False).transmission
        _, delivered = evidence.at_server(number)
        stops = evidence.note(number, "stop", SERVER)
        if arrived is None or not stops:
            return None
        pause = delivered.silence(stops[0][1])
        return (max(pause[0], arrived[1]), pause[1]) if pause is not None else None

    # What is left then fits into buffers before the server, but not into its own.
    moment = StopMoment(pod=SERVER, peer=TARGET, bytes_before=3_500_000)
    return Plan(
        claims=(Claim("server", _BOUND, noted_part("server", "stop", whole, pod=SERVER)),),
        injectors=(
            ReceiveBuffer(SERVER, _SMALL_BUFFER_BYTES),
            ProcessStop(SERVER, "server", moment, sizes, announced=_TRAINING),
        ),
        environment=critical(),
    )
