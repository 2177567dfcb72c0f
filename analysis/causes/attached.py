"""What can be said of a deployment that ran already, beside what any run shows: packets that are lost on the
way, and connections that were reset.

Nothing is emulated there, and who drops packets may be on another machine: what the kernel itself dropped,
and why, is said where it was seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from analysis.causes.case import Case
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.evidence.values import RST, Drop, Retransmission, Wire
from analysis.intervals import total_ns, union

__all__ = ("recognise",)

_FEW = 4
# Of a trouble's time, what stalls behind lost packets has to take to be why.
_STALLED_SHARE = 0.3


def recognise(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Nothing of a run that ztprobe brought up."""
    if case.is_attached:
        yield from _lost(case, troubles)
        yield from _reset(case, troubles)


def _lost(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """By connection: what was sent again and had not arrived, and how long that held it up."""
    for trouble in (one for one in troubles if one.kind in ("slow", "unfinished", "stall")):
        for (pod, key), sent_again in case.events.retransmissions.items():
            if not isinstance(key, Wire):
                continue
            lost = [
                one
                for one in sent_again
                if trouble.from_ns <= one.ts_ns <= trouble.to_ns and not _is_needless(case, key, one)
            ]
            stalls = union(
                [(max(trouble.from_ns, one.first_sent_ns or one.ts_ns), one.ts_ns) for one in lost]
            )
            stalled_ns = total_ns(stalls)
            if len(lost) < 2 or stalled_ns < _STALLED_SHARE * (trouble.to_ns - trouble.from_ns):
                continue
            peer = case.pod_of(key.peer_of(case.addresses.get(pod, pod)).address)
            yield _of_lost(case, trouble, pod, peer, lost, stalled_ns, _dropped(case, trouble, key))


def _is_needless(case: Case, key: Wire, one: Retransmission) -> bool:
    """Whether its receiver said that it had the bytes already."""
    return any(
        (one.seq - had.seq) & 0xFFFFFFFF < had.bytes
        for (_, other), found in case.events.duplicate_acks.items()
        if other == key
        for had in found
    )


def _dropped(case: Case, trouble: Trouble, key: Wire) -> list[Drop]:
    ends = {key.one.address, key.other.address}
    return sorted(
        (
            drop
            for drops in case.events.drops.values()
            for drop in drops
            if drop.payload_bytes
            and trouble.from_ns <= drop.ts_ns <= trouble.to_ns
            and {case.pod_of(drop.source.address), case.pod_of(drop.target.address)} == ends
        ),
        key=lambda drop: drop.ts_ns,
    )


def _after_ms(one: Retransmission) -> float:
    return (one.ts_ns - one.first_sent_ns) / 1e6


def _of_lost(
    case: Case,
    trouble: Trouble,
    pod: str,
    peer: str,
    lost: Sequence[Retransmission],
    stalled_ns: int,
    dropped: Sequence[Drop],
) -> Cause:
    reasons = Counter(drop.reason for drop in dropped)
    why = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
    told = f"; this kernel dropped {len(dropped)} of them: {why}" if dropped else ""
    sent = [
        Moment(
            ts_ns=one.ts_ns,
            pod=pod,
            event=f"{one.bytes} bytes sent again to {peer}"
            + (
                f", {(one.ts_ns - one.first_sent_ns) / 1e6:.0f} ms after the first time"
                if one.first_sent_ns
                else ""
            ),
            shows="what was sent first had not arrived",
        )
        for one in (lost if len(lost) <= _FEW else [*lost[: _FEW - 1], lost[-1]])
    ]
    drops = [
        Moment(
            ts_ns=drop.ts_ns,
            pod=drop.pod,
            event=f"{case.pod_of(drop.source.address)} -> {case.pod_of(drop.target.address)}:"
            f"{drop.target.port} dropped: {drop.reason}",
            shows="it was lost here",
        )
        for drop in dropped[:_FEW]
    ]
    return cause_of(
        "application.packets_lost",
        summary=f"packets from {pod} to {peer} are lost: {len(lost)} were sent again, which held it up for "
        f"{stalled_ns / 1e9:.1f} s{told}",
        strength=0.9 if dropped else 0.7,
        moments=tuple(sorted((*sent, *drops))),
        remedial=Remedial(
            words=f"find out what drops packets between {pod} and {peer}: a queue that is too short, a "
            "filter, a bad link (`ztprobe drops` shows what this machine drops)"
        ),
        pods=(peer if peer in case.clients else pod,),
        component="retransmission",
        details={"sent_again": len(lost), "stalled_s": round(stalled_ns / 1e9, 3), "dropped": dict(reasons)},
    )


def _reset(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Connections of those who are missing that ended by RST, whose processes were not seen to end."""
    ended = {one.pod for one in case.exits}
    for trouble in (one for one in troubles if one.kind in ("vanished", "unfinished")):
        for (pod, key), packets in case.events.packets.items():
            if not isinstance(key, Wire):
                continue
            peer = case.pod_of(key.peer_of(case.addresses.get(pod, pod)).address)
            about = next((one for one in (pod, peer) if one in trouble.pods), None)
            resets = [one for one in packets if one.tcp_flags & RST and one.direction == "tx"]
            if about is None or about in ended or not resets or case.server in ended:
                continue
            if (
                not any(one.payload_bytes for one in packets)
                and case.last_payload_ns(key, resets[0].ts_ns) is None
            ):
                continue  # it was refused: nothing to reset
            yield cause_of(
                "application.connection_reset",
                summary=f"{pod} reset its connection with {peer}",
                strength=0.6,
                moments=(
                    Moment(
                        ts_ns=resets[0].ts_ns,
                        pod=pod,
                        event=f"RST to {peer}",
                        shows="it has given the connection up, or knows nothing of it",
                    ),
                ),
                remedial=Remedial(words=f"read what {pod} and {peer} say in their logs at that time"),
                pods=(about,),
            )
