"""Why a packet was dropped: the verdict of the policies in force, or what part of normal work it was. Pure.

The kernel's reason says that a packet filter dropped a packet, and never for which rule. What explains
it is the verdict of `ztprobe.policy` on the packet's own addresses and port, by the objects that were in
force. Only a packet that opens something (a TCP SYN, a datagram) and that a packet filter dropped is
explained like that: no other reason is a policy's, and where no policy selects either end none is named.
"""

from __future__ import annotations

import ipaddress

from analysis.evidence.values import ACK, RST, SYN
from ztprobe.errors import UsageError
from ztprobe.policy.explanation import Explainer, Explanation
from ztprobe.policy.model import Objects

__all__ = ("BY_FILTER", "NOISE", "DropExplainer", "Why", "noise_of")

BY_FILTER = frozenset({"NETFILTER_DROP"})
# Of these reasons are the segments that sockets have no more use for, mostly once a connection ends.
_BY_SOCKET = frozenset({"QUEUE_PURGE", "NOT_SPECIFIED", "NO_SOCKET", "TCP_OLD_ACK", "TCP_CLOSE"})
_POLICED = ("tcp", "udp", "sctp")
_BROADCAST = "255.255.255.255"

# What drops are part of normal work, and what to say of them.
NOISE = {
    "bare": "without payload: nothing of the application's is lost",
    "arp": "ARP, asked of everybody and dropped by whom it is not for",
    "group": "for a group (multicast or broadcast) that nobody here listens to",
}

# Verdict (denied | allowed | ...; empty: no policy is asked), the policies that deny, and the words for it.
Why = tuple[str, tuple[str, ...], tuple[str, ...]]


def noise_of(*, protocol: str, target: str, tcp_flags: int, payload_bytes: int, reason: str) -> str:
    """Which of `NOISE` a dropped packet is; empty: none.

    :param target: its address.
    """
    if protocol == "arp":
        return "arp"
    if reason in BY_FILTER:
        return ""
    if protocol == "tcp" and not payload_bytes and not tcp_flags & SYN and reason in _BY_SOCKET:
        return "bare"
    try:
        address = ipaddress.ip_address(target)
    except ValueError:
        return ""
    return "group" if address.is_multicast or target == _BROADCAST else ""


class DropExplainer:
    """Verdicts on packets, each connection's asked for once.

    :param objects: that were in force; None: they are not known.
    :param unknown: what to say then of what a packet filter dropped.
    """

    def __init__(self, objects: Objects | None, *, unknown: str) -> None:
        self._explainer = None if objects is None else Explainer(objects)
        self._unknown = unknown
        self._known: dict[tuple[str, str, str, int], Why] = {}

    def why(
        self,
        *,
        source: str,
        target: str,
        protocol: str,
        target_port: int,
        tcp_flags: int,
        reason: str,
        answers: bool = False,
    ) -> Why:
        """Of a packet by its addresses.

        :param answers: a datagram that goes back the way that another was seen to come.
        """
        if reason not in BY_FILTER:
            return "", (), ()
        if self._explainer is None:
            return "", (), (self._unknown,)
        opens = not answers if protocol != "tcp" else tcp_flags & (SYN | ACK | RST) == SYN
        if not opens or protocol not in _POLICED:
            return "", (), ("by a packet filter; no new connection, which is what policies are about",)
        asked = (source, target, protocol.upper(), target_port)
        if asked not in self._known:
            self._known[asked] = _explain(self._explainer, *asked)
        return self._known[asked]


def _explain(explainer: Explainer, source: str, target: str, protocol: str, port: int) -> Why:
    try:
        ends = [str(ipaddress.ip_address(end)) for end in (source, target)]
        found = explainer.explain(ends[0], ends[1], protocol, port)
    except (ValueError, UsageError):  # its head was cut short, or two pods have one address
        return "undecidable", (), ("by a packet filter; whose packet it was is not certain",)
    return found.verdict, _deniers(found), _words(found)


def _deniers(found: Explanation) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for side in found.sides:
        if side.verdict == "denied":
            names |= dict.fromkeys((*(rule.policy for rule in side.denied_by), *side.isolated_by))
    return tuple(names)


def _words(found: Explanation) -> tuple[str, ...]:
    if found.verdict == "denied":
        return tuple(f"{side.direction} {side.reason}" for side in found.sides if side.verdict == "denied")
    if found.verdict == "undecidable":
        return (f"by a packet filter; not known whether a policy denies it: {'; '.join(found.missing)}",)
    if found.verdict == "allowed":
        return ("by a packet filter, and no policy's: the policies allow it",)
    return ("by a packet filter, and no policy's: none selects either end",)
