"""Costs of connection set-up: handshakes, name service, and policies that block either."""

from __future__ import annotations

from collections.abc import Mapping

from ztprobe.profile.model import Profile
from ztprobe.validate.comparison import RunEvidence, from_capture, noted_part
from ztprobe.validate.inject.packets import DROPPED, Blocker, PacketHolder
from ztprobe.validate.model import Bound
from ztprobe.validate.observe import truth
from ztprobe.validate.scenarios.plan import INTERFACE, PORT, TARGET, Claim, Plan, critical

__all__ = (
    "PAYLOAD",
    "POLICY_BOUND",
    "SYN_ACK",
    "TCP_HANDSHAKE",
    "dns",
    "dns_blocked",
    "hold",
    "port_blocked",
    "second_flight",
    "server_hello",
    "syn_ack",
    "syn_drop",
)

_SET_UP_BOUND = Bound(absolute_ms=1, relative=0.02)
_DNS_BOUND = Bound(absolute_ms=2, relative=0.05)
TCP_HANDSHAKE = Claim(
    "tcp_handshake",
    _SET_UP_BOUND,
    from_capture("tcp_handshake", lambda e, k: truth.handshakes(e.seen(e.target, k), e.server_ports)),
)
_TLS = Claim(
    "tls_handshake",
    _SET_UP_BOUND,
    from_capture("tls_handshake", lambda e, k: truth.tls_handshakes(e.seen(e.target, k), e.server_ports)),
)
_DNS = Claim("dns", _DNS_BOUND, from_capture("dns", lambda e, k: truth.dns_waits(e.seen(e.target, k))))
SYN_ACK = f"-d {{}} -p tcp --sport {PORT} --tcp-flags SYN,ACK SYN,ACK"
_SYN = f"-s {{}} -p tcp --dport {PORT} --tcp-flags SYN,ACK SYN"
# For iptables' u32: behind the IP and TCP headers.
PAYLOAD = "0>>22&0x3C@12>>26&0x3C@"
# A TLS record of type handshake whose message is ServerHello.
_SERVER_HELLO = (
    f'-d {{}} -p tcp --sport {PORT} -m u32 --u32 "{PAYLOAD}0>>8=0x160303&&{PAYLOAD}4>>16&0xFF=0x02"'
)
_DNS_ANSWER = "-d {} -p udp --sport 53"


# ... of type ChangeCipherSpec, with which OpenSSL begins the client's second flight.
_SECOND_FLIGHT = f'-o {INTERFACE} -p tcp --dport {PORT} -m u32 --u32 "{PAYLOAD}0>>24=0x14"'
_WITH_PAYLOAD = f"-o {INTERFACE} -p tcp --dport {PORT} -m length --length 53:65535"


def hold(kind: str, match: str, sizes: Mapping[int, float], claim: Claim) -> Plan:
    """One kind of packet to the target held once a round."""

    def decide(_pod: str, number: int, _nth: int) -> float:
        return sizes.get(number, 0.0)

    return Plan(
        claims=(claim,),
        injectors=(PacketHolder(kind, {TARGET: match}, decide),),
        environment=critical(),
    )


def syn_ack(sizes: Mapping[int, float]) -> Plan:
    """The answer to a connection attempt held."""
    return hold("syn-ack", SYN_ACK, sizes, TCP_HANDSHAKE)


def server_hello(sizes: Mapping[int, float]) -> Plan:
    """The server's first TLS flight held."""
    return hold("server-hello", _SERVER_HELLO, sizes, _TLS)


def second_flight(sizes: Mapping[int, float]) -> Plan:
    """The client's second TLS flight held before its interface, and all that follows behind it."""

    def decide(_pod: str, number: int, _nth: int) -> float:
        return sizes.get(number, 0.0)

    def whole(evidence: RunEvidence, number: int) -> truth.Interval | None:
        found = truth.tls_handshakes(evidence.seen(evidence.target, number), evidence.server_ports)
        releases = [end_ns for _, end_ns in evidence.note(number, "second-flight")]
        return (found[0][0], releases[0]) if found and releases else None

    holder = PacketHolder("second-flight", {TARGET: _SECOND_FLIGHT}, decide, behind=_WITH_PAYLOAD)
    return Plan(
        claims=(Claim("tls_handshake", _SET_UP_BOUND, noted_part("tls_handshake", "second-flight", whole)),),
        injectors=(holder,),
        environment=critical(),
        profile=Profile(name="delay-20ms", delay_ms=20.0),
    )


def dns(sizes: Mapping[int, float]) -> Plan:
    """Answers of the name service held."""
    return hold("dns-answer", _DNS_ANSWER, sizes, _DNS)


def syn_drop(sizes: Mapping[int, float]) -> Plan:
    """The first connection attempts dropped."""

    def decide(_pod: str, number: int, nth: int) -> float:
        return DROPPED if nth < sizes.get(number, 0) else 0.0

    return Plan(
        claims=(TCP_HANDSHAKE,),
        injectors=(PacketHolder("syn", {TARGET: _SYN}, decide),),
        environment=critical(),
    )


# policy


POLICY_BOUND = Bound(relative=0.05)


def port_blocked(sizes: Mapping[int, float]) -> Plan:
    """The server's port blocked from the target's next connection attempt on."""

    def blocks(evidence: RunEvidence, number: int) -> list[truth.Interval]:
        client, server = (evidence.seen(pod, number) for pod in (evidence.target, evidence.server))
        return truth.policy_blocks(client, server, evidence.server_ports)

    return Plan(
        claims=(Claim("policy_drop", POLICY_BOUND, from_capture("policy_drop", blocks)),),
        injectors=(Blocker(TARGET, f"tcp dport {PORT}", "tcp flags & (syn | ack) == syn", sizes),),
        environment=critical(),
        profile=Profile(name="delay-20ms", delay_ms=20.0),
    )


def dns_blocked(sizes: Mapping[int, float]) -> Plan:
    """The name service blocked from the target's next question on."""

    def blocks(evidence: RunEvidence, number: int) -> list[truth.Interval]:
        return truth.dns_blocks(evidence.seen(evidence.target, number))

    return Plan(
        claims=(Claim("policy_drop", POLICY_BOUND, from_capture("policy_drop", blocks)),),
        injectors=(Blocker(TARGET, "udp dport 53", "", sizes),),
        environment=critical(),
    )
