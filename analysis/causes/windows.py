"""Receivers that make senders wait: a receive window that stays closed, or is too small for the way.

Counters of full buffers are of a whole pod, loopback included, where a sidecar that stands before a slow link
reads slowly: that is back-pressure, and nothing is wrong with it. What tells is the sender on the wire, which
the kernel saw wait for its peer's window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analysis.causes.case import Case
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.evidence.values import Burst, Wire
from ztprobe.events.kinds import Direction, Hook

__all__ = ("recognise_windows",)

_LEAST_NS = 2_000_000_000
_SHARE = 0.5  # of the trouble's time


def recognise_windows(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Of each trouble, each pair of pods of which one had to wait for the other's window."""
    for (sender, hook, key), found in case.events.bursts.items():
        if hook != Hook.ETH or not isinstance(key, Wire) or sender not in case.addresses:
            continue
        receiver = case.pod_of(key.peer_of(case.addresses[sender]).address)
        bursts = [burst for burst in found.get(Direction.TX, ()) if burst.rwnd_ns]
        for trouble in troubles:
            inside = [b for b in bursts if b.first_ns < trouble.to_ns and b.last_ns > trouble.from_ns]
            held_ns = sum(_held_ns(burst, trouble) for burst in inside)
            if held_ns >= max(_LEAST_NS, _SHARE * (trouble.to_ns - trouble.from_ns)):
                yield _cause(case, trouble, sender, receiver, inside, held_ns)


def _held_ns(burst: Burst, trouble: Trouble) -> float:
    lasted_ns = max(1, burst.last_ns - burst.first_ns)
    inside_ns = min(burst.last_ns, trouble.to_ns) - max(burst.first_ns, trouble.from_ns)
    return burst.rwnd_ns * max(0, inside_ns) / lasted_ns


def _cause(
    case: Case, trouble: Trouble, sender: str, receiver: str, bursts: Sequence[Burst], held_ns: float
) -> Cause:
    first, last = bursts[0], bursts[-1]
    closed = case.growth("pods", receiver, "closed_windows") if receiver in case.addresses else 0
    moments = [
        Moment(
            ts_ns=max(first.first_ns, trouble.from_ns),
            pod=sender,
            event=f"begins to send {sum(burst.bytes for burst in bursts) / 1e6:.2f} MB to {receiver}",
            shows="it has the bytes",
        ),
        Moment(
            ts_ns=min(last.last_ns, trouble.to_ns),
            pod=sender,
            event=f"has waited {held_ns / 1e9:.1f} s for {receiver}'s receive window",
            shows=f"{receiver} takes no more at a time"
            + (f", and said {closed} times that it takes nothing" if closed else ""),
        ),
    ]
    return cause_of(
        "resources.receive_buffer_full",
        summary=f"{receiver}'s receive buffer is full: {sender} waited {held_ns / 1e9:.1f} s of "
        f"{(trouble.to_ns - trouble.from_ns) / 1e9:.1f} s for its window",
        strength=0.9,
        moments=tuple(sorted(moments)),
        remedial=Remedial(
            words=f"raise net.ipv4.tcp_rmem in {receiver} above the bandwidth-delay product, or let it read "
            "faster"
        ),
        pods=(receiver,),
        component="transmission",
        from_ns=max(first.first_ns, trouble.from_ns),
        details={"held_s": round(held_ns / 1e9, 3), "sender": sender},
    )
