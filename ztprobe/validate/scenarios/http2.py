"""Costs of HTTP/2's flow control: gRPC peers with a small window, and a WINDOW_UPDATE that is held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from analysis.intervals import overlap_ns, total_ns, union
from ztprobe.validate.comparison import RunEvidence, sub_row
from ztprobe.validate.inject.packets import PacketHolder
from ztprobe.validate.model import Bound
from ztprobe.validate.observe import truth
from ztprobe.validate.scenarios.plan import PORT, SERVER, TARGET, Claim, Plan, both_ways, critical
from ztprobe.validate.scenarios.setup import PAYLOAD
from ztprobe.validate.scenarios.wire import delay, steps

__all__ = ("sealed_update_held", "sealed_window", "small_window", "update_held")

_BEHIND_SIDECARS = (TARGET, f"{TARGET}/lo", SERVER, f"{SERVER}/lo")
# Less than TCP's initial window of ten segments: the first flight is already too long for it.
_WINDOW = {"FL_HTTP2_WINDOW_BYTES": "8192"}
# A frame of 4 bytes and type WINDOW_UPDATE, for 10 kB and more.
_UPDATE = (
    f"-d {{}} -p tcp --sport {PORT} -m u32"
    f' --u32 "{PAYLOAD}0=0x00000408&&{PAYLOAD}9&0x7FFFFFFF=10000:0x7FFFFFFF"'
)

# One for the stream and one for the connection, 13 bytes each, in a TLS record of their own.
_SEALED_UPDATE = (
    f'-d {{}} -p tcp --sport {PORT} -m u32 --u32 "{PAYLOAD}0>>8=0x170303&&{PAYLOAD}1&0xFFFF={2 * 13 + 17}"'
)


def _closed(evidence: RunEvidence, number: int) -> list[list[truth.Interval]]:
    """Both messages' waits for a window, HTTP/2's or TCP's, which the ledger has in one row."""
    found = []
    for link, down in zip(both_ways(evidence, number), (True, False), strict=True):
        # What is closed at a message's end holds nothing back.
        last_ns = link.sent[-1].ts_ns if link.sent else 0
        waits = [wait for wait in evidence.http2_closed(number, down=down) if wait[1] < last_ns]
        found.append(union(waits + link.closed_windows))
    return found


def _closed_ns(evidence: RunEvidence, number: int) -> int:
    return sum(map(total_ns, _closed(evidence, number)))


def _at_receiver(evidence: RunEvidence, number: int) -> list[truth.Interval]:
    """The same as the ledger places it, which is later by the way's delay."""
    found: list[truth.Interval] = []
    for link, waits in zip(both_ways(evidence, number), _closed(evidence, number), strict=True):
        if link.first_delay is not None:
            late_ns = link.first_delay[1] - link.first_delay[0]
            found += [(begin + late_ns, end + late_ns) for begin, end in waits]
    return found


def _clocked_ns(evidence: RunEvidence, number: int) -> int:
    """The congestion window's part, which is everything that an acknowledgement ended but those waits."""
    links = both_ways(evidence, number)
    return sum(
        total_ns(link.ack_clocked) - overlap_ns(link.ack_clocked, waits)
        for link, waits in zip(links, _closed(evidence, number), strict=True)
    )


def _claim(where: str, row: str, truth_ns: Callable[[RunEvidence, int], int]) -> Claim:
    return Claim(where, Bound(relative=0.05), sub_row("transmission", row, truth_ns, within=_at_receiver))


_HTTP2 = _claim("HTTP/2 window", "receive_or_http2_window", _closed_ns)
_CONGESTION = _claim("congestion window", "congestion_window", _clocked_ns)


def small_window(sizes: Mapping[int, float]) -> Plan:
    """Peers that grant 8 kB, and about 1 MB to what they wait for, over ways of several lengths."""
    plan = _small_window(sizes, _HTTP2, _CONGESTION)
    return replace(plan, whole=(TARGET, SERVER))


def sealed_window(sizes: Mapping[int, float]) -> Plan:
    """The same inside mutual TLS, where many updates are often written as one record."""
    return replace(_small_window(sizes, _HTTP2), whole=_BEHIND_SIDECARS)


def _small_window(sizes: Mapping[int, float], *claims: Claim) -> Plan:
    # How long a message takes varies with how the windows fall, and the target has to come last.
    return steps(sizes, delay, *claims, **critical(800.0), **_WINDOW)


def update_held(sizes: Mapping[int, float]) -> Plan:
    """The first WINDOW_UPDATE for an update held."""
    return replace(_update_held(sizes, _UPDATE), whole=(TARGET, SERVER))


def sealed_update_held(sizes: Mapping[int, float]) -> Plan:
    """The same inside mutual TLS."""
    return replace(_update_held(sizes, _SEALED_UPDATE), whole=_BEHIND_SIDECARS)


def _update_held(sizes: Mapping[int, float], match: str) -> Plan:
    def decide(_pod: str, number: int, nth: int) -> float:
        return sizes.get(number, 0.0) if not nth else 0.0

    return Plan(
        claims=(_HTTP2,),
        injectors=(PacketHolder("window-update", {TARGET: match}, decide),),
        environment=critical() | _WINDOW,
        profile=delay(10.0),
    )
