"""What a capture that others recorded says of a failure, without the kernel's own word.

A capture shows what passed where it was taken, and no more: a SYN that nobody answers may have been dropped
by a policy, by a full queue, or have found nobody. So no policy is named for silence; a cause is named where
packets themselves tell (an ICMP error, a TLS alert in clear, an answer that a name does not exist), and
otherwise what was seen, with what would decide it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scapy.layers.dns import DNS
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from analysis.causes.capture_file import MOST_PACKETS, read_capture
from analysis.causes.classes import CAUSES
from analysis.causes.refusals import alert_cause
from analysis.evidence.values import ACK, FIN, RST, SYN
from ztprobe.documents.problem import DocumentError
from ztprobe.errors import UsageError

__all__ = ("diagnose_capture",)

_FEW = 5
_PROHIBITED = (9, 10, 13)  # codes of ICMP destination unreachable: administratively prohibited
_RESENT = 3
_ALERT = 21


@dataclass
class _Flow:
    """One TCP connection attempt; times in seconds since 1970."""

    source: str
    target: str
    port: int
    syns: list[float] = field(default_factory=list)
    answered: float | None = None
    refused: float | None = None
    refused_ttl: int | None = None
    sent: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    acked: dict[str, int] = field(default_factory=dict)  # by who acknowledges: highest number
    zero_windows: list[tuple[float, str]] = field(default_factory=list)
    alerts: list[tuple[float, str, int]] = field(default_factory=list)
    ended: tuple[float, str, str] | None = None  # when, by whom, FIN or RST


@dataclass
class _Seen:
    flows: dict[tuple[str, int, str, int], _Flow] = field(default_factory=dict)
    ttls: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # of what is no RST
    icmp: list[tuple[float, str, int, str]] = field(default_factory=list)  # when, from, code, about
    asked: dict[tuple[str, int, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    unknown: list[tuple[float, str, str]] = field(default_factory=list)
    comments: list[tuple[float, str]] = field(default_factory=list)
    packets: int = 0
    first_s: float = 0.0
    last_s: float = 0.0


def diagnose_capture(path: Path) -> dict[str, Any]:
    """What a pcapng file tells.

    :raises UsageError: it cannot be read; one line says why.
    """
    try:
        seen = _look(read_capture(path))
    except DocumentError as error:
        raise UsageError(error.at(path)) from error
    causes = sorted(_causes(seen), key=lambda one: (-one["confidence"], one["id"]))
    for rank, cause in enumerate(causes, 1):
        cause["rank"] = rank
    more = f" (the first {MOST_PACKETS:,})" if seen.packets >= MOST_PACKETS else ""
    return {
        "schema_version": 1,
        "file": str(path),
        "packets": seen.packets,
        "lasted_s": round(seen.last_s - seen.first_s, 6),
        "causes": causes,
        "said": f"{seen.packets:,} packets{more} in {seen.last_s - seen.first_s:.1f} s, "
        f"{len(seen.flows)} TCP connections tried",
        # Of ztprobe's own pcapng they are the kernel's reasons; of others', what they are.
        "comments": [{"time_unix_s": at_s, "comment": comment} for at_s, comment in seen.comments[:_FEW]],
        "cannot": [
            "whether the kernel dropped a packet, where and why: a capture shows what passed its interface",
            "which policy it was: no policy is named by a capture",
            "what processes did: whether one was killed, out of memory, throttled or stopped",
        ],
    }


def _look(packets: Iterable[Packet]) -> _Seen:
    seen = _Seen()
    for packet in packets:
        at_s = float(packet.time)
        seen.first_s = at_s if not seen.packets else seen.first_s
        seen.last_s = max(seen.last_s, at_s)
        seen.packets += 1
        for comment in getattr(packet, "comments", None) or ():
            seen.comments.append((at_s, comment.decode(errors="replace")))
        network = packet.getlayer(IP) or packet.getlayer(IPv6)
        if network is None:
            continue
        if ICMP in packet and packet[ICMP].type == 3:
            _icmp(seen, at_s, packet)
        elif TCP in packet:
            _tcp(seen, at_s, network, packet[TCP])
        elif UDP in packet and DNS in packet:
            _dns(seen, at_s, network, packet)
    return seen


def _icmp(seen: _Seen, at_s: float, packet: Packet) -> None:
    error = packet[ICMP]
    inner = error.payload
    port = getattr(inner.payload, "dport", "?")
    about = f"{getattr(inner, 'src', '?')} -> {getattr(inner, 'dst', '?')}:{port}"
    seen.icmp.append((at_s, packet[IP].src, int(error.code), about))


def _tcp(seen: _Seen, at_s: float, network: Packet, segment: Packet) -> None:
    flags = int(segment.flags)
    ends = (network.src, segment.sport, network.dst, segment.dport)
    back = ends[2:] + ends[:2]
    ttl = int(getattr(network, "ttl", getattr(network, "hlim", 0)))
    if not flags & RST:
        seen.ttls[network.src].add(ttl)
    if flags & SYN and not flags & ACK:
        flow = seen.flows.setdefault(ends, _Flow(network.src, network.dst, segment.dport))
        flow.syns.append(at_s)
        return
    found = seen.flows.get(ends) or seen.flows.get(back)
    if found is None:
        return
    if flags & SYN:
        found.answered = found.answered or at_s
    elif flags & RST and found.answered is None and network.src == found.target:
        found.refused, found.refused_ttl = found.refused or at_s, ttl
    elif flags & (FIN | RST) and found.ended is None:
        found.ended = (at_s, network.src, "RST" if flags & RST else "FIN")
    _payload(found, at_s, network.src, segment, flags)


def _payload(flow: _Flow, at_s: float, source: str, segment: Packet, flags: int) -> None:
    if flags & ACK:
        flow.acked[source] = max(flow.acked.get(source, 0), int(segment.ack))
    if segment.window == 0 and not flags & (RST | SYN):
        flow.zero_windows.append((at_s, source))
    data = bytes(segment.payload)
    if data:
        flow.sent[source, int(segment.seq)].append(at_s)
        if len(data) >= 7 and data[0] == _ALERT and data[3:5] == b"\0\x02":
            flow.alerts.append((at_s, source, data[6]))


def _dns(seen: _Seen, at_s: float, network: Packet, packet: Packet) -> None:
    message = packet[DNS]
    if not message.qd:
        return
    name = bytes(message.qd[0].qname).decode("ascii", "replace").rstrip(".")
    if message.qr == 0:
        seen.asked[network.src, int(message.id), name].append(at_s)
        return
    seen.asked.pop((network.dst, int(message.id), name), None)
    if message.rcode == 3:
        seen.unknown.append((at_s, network.dst, name))


def _causes(seen: _Seen) -> Iterator[dict[str, Any]]:
    yield from _icmp_causes(seen)
    yield from _flow_causes(seen)
    yield from _name_causes(seen)


def _icmp_causes(seen: _Seen) -> Iterator[dict[str, Any]]:
    for codes, identifier, shows, remedy in (
        (
            _PROHIBITED,
            "policy.rejected",
            "a packet filter rejects it",
            "look for the rule at who sent the error",
        ),
        (
            (4,),
            "emulation.mtu_black_hole",
            "the packet is too long for the way",
            "lower the MTU of the sender",
        ),
        (
            (3,),
            "application.nothing_listens",
            "nothing listens at the port",
            "start what should listen there",
        ),
    ):
        found = [one for one in seen.icmp if one[2] in codes]
        if found:
            yield _cause(
                identifier,
                0.85 if identifier != "emulation.mtu_black_hole" else 0.5,
                f"ICMP errors from {found[0][1]} about {found[0][3]}: {shows}",
                [
                    (at_s, who, f"ICMP unreachable, code {code}, about {about}", shows)
                    for at_s, who, code, about in found
                ],
                remedy,
            )


def _flow_causes(seen: _Seen) -> Iterator[dict[str, Any]]:
    silent = [f for f in seen.flows.values() if f.answered is None and f.refused is None]
    if silent:
        first = silent[0]
        yield _cause(
            "application.peer_unreachable",
            0.4,
            f"{first.target}:{first.port} does not answer {first.source}: a filter drops it, it was lost, or "
            "nobody is there; the capture does not tell which",
            [
                (f.syns[0], f.source, f"SYN to {f.target}:{f.port}, {len(f.syns)} times, no answer", "")
                for f in silent
            ],
            "capture at the target too, or trace with ztprobe: the kernel names the drop",
        )
    for flow in (f for f in seen.flows.values() if f.refused is not None):
        other = flow.refused_ttl not in seen.ttls.get(flow.target, {flow.refused_ttl})
        yield _cause(
            "policy.rejected" if other else "application.nothing_listens",
            0.6,
            f"{flow.source} is refused at {flow.target}:{flow.port}"
            + (": the RST's TTL is not the target's, so a filter on the way sent it" if other else ""),
            [(flow.refused or 0.0, flow.target, "RST in answer to a SYN", f"TTL {flow.refused_ttl}")],
            "see whether something listens there, and whether a filter rejects",
        )
        break
    for flow in seen.flows.values():
        if flow.alerts:
            at_s, who, description = flow.alerts[0]
            yield _cause(
                alert_cause(description),
                0.85,
                f"{who} refuses the TLS handshake of {flow.source} with {flow.target}:{flow.port} "
                f"(alert {description})",
                [(at_s, who, f"TLS alert {description} in clear", "it says so itself")],
                "compare the certificates and TLS settings of the two",
            )
            break
    yield from _transfer_causes(seen)


def _transfer_causes(seen: _Seen) -> Iterator[dict[str, Any]]:
    for flow in seen.flows.values():
        if len(flow.zero_windows) >= _RESENT:
            _, who = flow.zero_windows[0]
            yield _cause(
                "resources.receive_buffer_full",
                0.5,
                f"{who} does not read: its receive window is closed ({len(flow.zero_windows)} times)",
                [(when, end, "window 0", "") for when, end in flow.zero_windows],
                "see whether the process that should read is stopped or starved",
            )
            break
    for flow in seen.flows.values():
        for (source, seq), times in flow.sent.items():
            peer = flow.target if source == flow.source else flow.source
            unheard = (seq + 1 - flow.acked.get(peer, 0)) & 0xFFFFFFFF < 1 << 31
            if len(times) > _RESENT and unheard:
                yield _cause(
                    "application.half_open",
                    0.45,
                    f"{source} sends to {peer} into nothing ({len(times)} times the same bytes): the peer is "
                    "gone, or something on the way drops them; the capture does not tell which",
                    [(when, source, "the same bytes", "not acknowledged") for when in times],
                    "capture at the peer too, or trace with ztprobe",
                )
                return


def _name_causes(seen: _Seen) -> Iterator[dict[str, Any]]:
    if seen.unknown and not seen.flows:
        _, who, name = seen.unknown[0]
        yield _cause(
            "application.no_such_name",
            0.7,
            f"{who} asks for {name}, which does not exist",
            [(when, end, f"{asked}: NXDOMAIN", "") for when, end, asked in seen.unknown],
            "correct the name, or create it",
        )
    lost = [(times[0], who, name, len(times)) for (who, _, name), times in seen.asked.items()]
    if len(lost) > 1:
        yield _cause(
            "application.peer_unreachable",
            0.4,
            f"nobody answers {lost[0][1]}'s questions for names: a filter drops them, or the name server "
            "is gone; the capture does not tell which",
            [(when, who, f"asked for {name}, {count} times", "no answer") for when, who, name, count in lost],
            "`ztprobe policy explain` says whether the policies allow DNS",
        )


def _cause(
    identifier: str,
    confidence: float,
    summary: str,
    moments: Iterable[tuple[float, str, str, str]],
    remedy: str,
) -> dict[str, Any]:
    cause = CAUSES[identifier]
    return {
        "rank": 0,
        "id": identifier,
        "class": cause.failure_class.value,
        "title": cause.title,
        "confidence": confidence,
        "summary": summary,
        "timeline": [
            {"number": number, "time_unix_s": at_s, "pod": who, "event": event, "shows": shows}
            for number, (at_s, who, event, shows) in enumerate(list(moments)[:_FEW], 1)
        ],
        "remedy": {"kind": cause.remedy.value, "words": remedy, "yaml": None},
    }
