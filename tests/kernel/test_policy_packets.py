"""Verdicts against real packets: random NetworkPolicies as nftables, and what then arrives.

Pods and an address outside are namespaces around a node that routes between them. For every pair,
protocol and port one opening packet is sent (SYN, datagram, INIT), all of a set before any answer is
read; what arrives has to be what the verdicts allow, and what does not has to be in the counter of
the direction that denies it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from random import Random

import pytest

from tests.unit.policy.random_objects import CONNECTION_PORTS, NAMESPACES, PORT_NAMES, labels, network_policy
from ztprobe.errors import UsageError
from ztprobe.kernelnet.netlink import create_netns, netlink, remove_netns
from ztprobe.kernelnet.netns import entered
from ztprobe.policy import NFT_TABLE, PolicyPod, Ruleset, compile_policies, to_nft
from ztprobe.runtime.local import firewall, network

SETS = int(os.environ.get("ZTPROBE_POLICY_PACKET_SETS", "6"))
FIRST = int(os.environ.get("ZTPROBE_POLICY_PACKET_FIRST", "0"))
PODS = 5
OUTSIDE = "192.0.2.1"
GATEWAY = "169.254.1.1"
PORTS = (*CONNECTION_PORTS, 9999)
PROTOCOLS = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP, "SCTP": 132}
QUIET_S = 0.05
PATIENCE_S = 5 * float(os.environ.get("ZTPROBE_TEST_PATIENCE", "1"))

Probe = tuple[str, str, int, int]  # source, target, protocol number, target's port

# Connections that tracking remembers would pass in the next set: each set has a source port of its own, and
# is forgotten at once, or a long series would fill the table.
_DEAF = """table ip deaf {
  chain input { type filter hook input priority 0; policy drop; }
}
"""
_TIMEOUTS = ("tcp_timeout_syn_sent", "tcp_timeout_close", "udp_timeout", "sctp_timeout_cookie_wait")


@dataclass(frozen=True)
class End:
    """A namespace behind the node, with a socket to send from and one that sees what arrives."""

    address: str
    netns: Path
    sender: socket.socket
    ear: socket.socket


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Path, list[End]]]:
    """The node, its pods, and an address outside."""
    tag = f"ztp-t{secrets.token_hex(3)}"
    with contextlib.ExitStack() as stack:

        def namespace(letter: str) -> Path:
            path = create_netns(f"{tag}{letter}")
            stack.callback(remove_netns, f"{tag}{letter}")
            return path

        node = namespace("n")
        network.write_sysctl(node, "net.ipv4.ip_forward", "1")
        for timeout in _TIMEOUTS:
            network.write_sysctl(node, f"net.netfilter.nf_conntrack_{timeout}", "1")
        ends = []
        for number, address in enumerate([f"10.0.0.{n + 1}" for n in range(PODS)] + [OUTSIDE]):
            netns = namespace(str(number))
            with netlink(node) as ipr:
                peer = {"ifname": "eth0", "net_ns_fd": str(netns)}
                ipr.link("add", ifname=f"veth{number}", kind="veth", peer=peer)
                (index,) = ipr.link_lookup(ifname=f"veth{number}")
                ipr.link("set", index=index, state="up")
                ipr.addr("add", index=index, address=GATEWAY, prefixlen=32)
            with netlink(netns) as ipr:
                (inner,) = ipr.link_lookup(ifname="eth0")
                ipr.addr("add", index=inner, address=address, prefixlen=32)
                ipr.link("set", index=inner, state="up")
                ipr.route("add", dst=f"{GATEWAY}/32", oif=inner, scope=253)
                ipr.route("add", dst="default", gateway=GATEWAY, oif=inner)
            with netlink(node) as ipr:
                ipr.route("add", dst=f"{address}/32", oif=index, scope=253)
            with entered(netns):
                # Seen on arrival and answered by nobody: answers would be counted with what is asked.
                subprocess.run(["nft", "-f", "-"], input=_DEAF, text=True, check=True)
                sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
                ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
            stack.callback(sender.close)
            stack.callback(ear.close)
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            ear.bind(("eth0", 0x0800))
            ends.append(End(address, netns, sender, ear))
        for one in ends:  # neighbours resolved: a lost ARP would look like a policy
            _await(ends, [(one.address, other.address, 17, 7) for other in ends if other is not one])
        yield node, ends


def _packet(probe: Probe, source_port: int) -> bytes:
    source, target, protocol, port = probe
    if protocol == socket.IPPROTO_TCP:
        inner = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, 2, 1024, 0, 0)
    elif protocol == socket.IPPROTO_UDP:
        inner = struct.pack("!HHHH", source_port, port, 8, 0)
    else:  # an INIT chunk; nobody listens, so its checksum is nobody's business
        chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
        inner = struct.pack("!HHII", source_port, port, 0, 0) + chunk
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    if protocol == socket.IPPROTO_TCP:
        inner = _with_checksum(inner, 16, addresses + struct.pack("!BBH", 0, protocol, len(inner)))
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(inner), 0, 0, 64, protocol, 0) + addresses
    return _with_checksum(head, 10, b"") + inner


def _with_checksum(data: bytes, offset: int, pseudo: bytes) -> bytes:
    words = pseudo + data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return data[:offset] + struct.pack("!H", ~total & 0xFFFF) + data[offset + 2 :]


def _send(ends: list[End], probes: list[Probe], source_port: int) -> None:
    senders = {end.address: end.sender for end in ends}
    for probe in probes:
        senders[probe[0]].sendto(_packet(probe, source_port), (probe[1], 0))


def _heard(ends: list[End], source_port: int, wanted: set[Probe]) -> set[Probe]:
    """The opening packets that arrive: until all that are wanted have, and then nothing for a while."""
    found: set[Probe] = set()
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        ready = select.select([end.ear for end in ends], [], [], QUIET_S)[0]
        if not ready and (wanted <= found or time.monotonic() > deadline_s):
            return found
        for ear in ready:
            data, (_, _, kind, *_) = ear.recvfrom(200)
            if kind != socket.PACKET_HOST or len(data) < 24 or data[9] not in PROTOCOLS.values():
                continue
            sent_from, port = struct.unpack_from("!HH", data, 20)
            if sent_from == source_port:
                ends_of = (socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20]))
                found.add((*ends_of, data[9], port))


def _await(ends: list[End], probes: list[Probe]) -> None:
    _send(ends, probes, 9)
    left = set(probes) - _heard(ends, 9, set(probes))
    assert not left, f"no way between namespaces: {sorted(left)}"


def _random_set(random: Random) -> Ruleset:
    protocols = tuple(PROTOCOLS)
    while True:
        pods = [
            PolicyPod(
                name=f"pod-{n}",
                namespace=random.choice(NAMESPACES),
                labels=labels(random),
                address=f"10.0.0.{n + 1}",
                ports={
                    (random.choice(protocols), random.choice(PORT_NAMES)): random.choice(CONNECTION_PORTS)
                    for _ in range(3)
                },
            )
            for n in range(PODS)
        ]
        policies = [network_policy(random, f"np-{n}") for n in range(random.randint(1, 5))]
        with contextlib.suppress(UsageError):  # a port name that nobody has is refused: another set
            return compile_policies(policies, pods, {name: labels(random) for name in NAMESPACES})


def _expected(rules: Ruleset, probes: list[Probe]) -> dict[Probe, str | None]:
    """The direction that denies each; None: it passes."""
    names = {pod.address: pod.name for pod in rules.pods}
    protocols = {number: name for name, number in PROTOCOLS.items()}
    found: dict[Probe, str | None] = {}
    for probe in probes:
        source, target, protocol, port = probe
        sides = [
            rules.slot(names[end]) if end in names else rules.compiled.slot_of_address(ip_address(end))
            for end in (source, target)
        ]
        explained = rules.explainer.explain_slots(*sides, protocols[protocol], port)
        found[probe] = next((side.direction for side in explained.sides if side.verdict == "denied"), None)
    return found


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SETS))
def test_packets_go_where_verdicts_say(scene: tuple[Path, list[End]], seed: int) -> None:
    node, ends = scene
    random = Random(seed)
    rules = _random_set(random)
    probes = [
        (source.address, target.address, protocol, port)
        for source in ends
        for target in ends
        if source is not target
        for protocol in PROTOCOLS.values()
        for port in PORTS
    ]
    expected = _expected(rules, probes)
    firewall.load(node, to_nft(rules))
    try:
        _send(ends, probes, 10_000 + seed)
        heard = _heard(ends, 10_000 + seed, {probe for probe, denied in expected.items() if denied is None})
        counters = firewall.counters(node)
    finally:
        with entered(node):
            subprocess.run(["nft", "delete", "table", "ip", NFT_TABLE], check=True)
    wrong = {p: d for p, d in expected.items() if (p in heard) != (d is None)}
    assert not wrong, f"seed {seed}: {wrong}\n{to_nft(rules)}"
    denied = Counter(direction for direction in expected.values() if direction is not None)
    assert {d: counters[f"drop_{d}"] for d in ("egress", "ingress")} == {
        d: denied[d] for d in ("egress", "ingress")
    }
