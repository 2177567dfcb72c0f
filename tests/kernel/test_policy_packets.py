"""Verdicts against real packets: random NetworkPolicies as nftables, and what then arrives.

Pods and an address outside are namespaces around a node that routes between them. For every pair,
protocol and port one opening packet is sent (SYN, datagram, INIT), all of a set before any answer is
read; what arrives has to be what the verdicts allow, and what does not has to be in the counter of
the direction that denies it.

Which policies an explanation names is held against packets, too: of what a set denies in a direction, one
packet is sent again under each policy of the set alone, cut down to that direction. Those under which it is
dropped are the ones that are to be named.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.unit.policy.random_objects import CONNECTION_PORTS, NAMESPACES, PORT_NAMES, labels, network_policy
from ztprobe.errors import UsageError
from ztprobe.kernelnet.netlink import create_netns, netlink, remove_netns
from ztprobe.kernelnet.netns import entered
from ztprobe.policy import DIRECTIONS, NFT_TABLE, PolicyPod, Ruleset, compile_policies, to_nft
from ztprobe.policy.sides import Side
from ztprobe.runtime.local import firewall, network

# Beyond the short test's sets, and with their ports below those of the policies alone. A set takes 0.4 s.
LONG_SETS, LONG_FIRST = int(os.environ.get("ZTPROBE_POLICY_PACKET_LONG_SETS", "150")), 1000
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


@dataclass(frozen=True)
class RandomSet:
    """Policies as documents and compiled, with the pods that they are about."""

    policies: list[dict[str, Any]]
    pods: list[PolicyPod]
    namespaces: dict[str, dict[str, str]]
    rules: Ruleset


@dataclass
class Found:
    """What packets say of sets."""

    sets: int = 0
    packets: int = 0
    wrong: dict[int, str] = field(default_factory=dict)  # seed -> what differs
    rightly: int = 0  # policies that were named, and are to blame
    wrongly: int = 0  # that were named, and are not
    missed: int = 0  # that were not named, and are to blame

    @property
    def precision(self) -> float:
        return self.rightly / max(1, self.rightly + self.wrongly)

    @property
    def recall(self) -> float:
        return self.rightly / max(1, self.rightly + self.missed)


def _random_set(random: Random) -> RandomSet:
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
        namespaces = {name: labels(random) for name in NAMESPACES}
        with contextlib.suppress(UsageError):  # a port name that nobody has is refused: another set
            return RandomSet(policies, pods, namespaces, compile_policies(policies, pods, namespaces))


def _explained(rules: Ruleset, probes: list[Probe]) -> dict[Probe, Side | None]:
    """The side that denies each, egress before ingress; None: it passes."""
    names = {pod.address: pod.name for pod in rules.pods}
    protocols = {number: name for name, number in PROTOCOLS.items()}
    found: dict[Probe, Side | None] = {}
    for probe in probes:
        source, target, protocol, port = probe
        sides = [
            rules.slot(names[end]) if end in names else rules.compiled.slot_of_address(ip_address(end))
            for end in (source, target)
        ]
        explained = rules.explainer.explain_slots(*sides, protocols[protocol], port)
        found[probe] = next((side for side in explained.sides if side.verdict == "denied"), None)
    return found


@contextlib.contextmanager
def _enforced(node: Path, rules: Ruleset) -> Iterator[None]:
    firewall.load(node, to_nft(rules))
    try:
        yield
    finally:
        with entered(node):
            subprocess.run(["nft", "delete", "table", "ip", NFT_TABLE], check=True)


def _look_at_set(scene: tuple[Path, list[End]], seed: int, into: Found) -> None:
    """One set: what arrives, what is counted, who is named."""
    node, ends = scene
    random = Random(seed)
    one = _random_set(random)
    probes = [
        (source.address, target.address, protocol, port)
        for source in ends
        for target in ends
        if source is not target
        for protocol in PROTOCOLS.values()
        for port in PORTS
    ]
    explained = _explained(one.rules, probes)
    source_port = 10_000 + seed
    with _enforced(node, one.rules):
        _send(ends, probes, source_port)
        heard = _heard(ends, source_port, {probe for probe, side in explained.items() if side is None})
        counters = firewall.counters(node)
    wrong = {p: s and s.direction for p, s in explained.items() if (p in heard) != (s is None)}
    denied = Counter(side.direction for side in explained.values() if side is not None)
    counted = {d: counters[f"drop_{d}"] for d in DIRECTIONS}
    into.sets += 1
    into.packets += len(probes)
    if wrong or counted != {d: denied[d] for d in DIRECTIONS}:
        into.wrong[seed] = f"{wrong}, denied {dict(denied)}, counted {counted}\n{to_nft(one.rules)}"
    for direction in DIRECTIONS:
        dropped = [
            p for p, s in explained.items() if s is not None and s.direction == direction and p not in heard
        ]
        if dropped:
            _look_at_names(scene, one, direction, random.choice(dropped), explained, into)


def _look_at_names(
    scene: tuple[Path, list[End]],
    one: RandomSet,
    direction: str,
    probe: Probe,
    explained: dict[Probe, Side | None],
    into: Found,
) -> None:
    node, ends = scene
    side = explained[probe]
    assert side is not None
    named = {name.split()[-1].partition("/")[2] for name in side.isolated_by}
    blamed = set()
    for number, policy in enumerate(one.policies):
        alone = _cut_down(policy, direction)
        if alone is None:
            continue
        with _enforced(node, compile_policies([alone], one.pods, one.namespaces)):
            source_port = 40_000 + number  # tracking has forgotten it by the next set
            _send(ends, [probe], source_port)
            deadline_s = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline_s:
                if firewall.counters(node)[f"drop_{direction}"]:
                    blamed.add(policy["metadata"]["name"])
                    break
                if _arrived(ends, source_port):
                    break
            else:
                raise AssertionError(f"{probe} neither arrived nor was counted under {alone}")
    into.rightly += len(named & blamed)
    into.wrongly += len(named - blamed)
    into.missed += len(blamed - named)


def _cut_down(policy: dict[str, Any], direction: str) -> dict[str, Any] | None:
    """A policy as it is in one direction, by the API's words on policyTypes; None: it has no say there."""
    spec = dict(policy["spec"])
    types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    if direction.capitalize() not in types:
        return None
    for other in set(DIRECTIONS) - {direction}:
        spec.pop(other, None)
    return {**policy, "spec": {**spec, "policyTypes": [direction.capitalize()]}}


def _arrived(ends: list[End], source_port: int) -> bool:
    ready = select.select([end.ear for end in ends], [], [], 0)[0]
    for ear in ready:
        data, (_, _, kind, *_) = ear.recvfrom(200)
        is_whole = kind == socket.PACKET_HOST and len(data) >= 24
        if is_whole and struct.unpack_from("!H", data, 20)[0] == source_port:
            return True
    return False


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SETS))
def test_packets_go_where_verdicts_say(scene: tuple[Path, list[End]], seed: int) -> None:
    found = Found()
    _look_at_set(scene, seed, found)
    assert not found.wrong, f"seed {seed}: {found.wrong}"
    assert not found.wrongly + found.missed, f"seed {seed}: {found}"


@pytest.mark.long
def test_many_sets_agree_and_policies_are_named(
    scene: tuple[Path, list[End]], record_property: Callable[[str, object], None]
) -> None:
    found = Found()
    for seed in range(LONG_FIRST, LONG_FIRST + LONG_SETS):
        _look_at_set(scene, seed, found)
    told = (
        f"{found.sets} sets, {found.packets} packets; policies named: precision {found.precision:.4f} "
        f"({found.rightly} of {found.rightly + found.wrongly}), recall {found.recall:.4f} "
        f"({found.rightly} of {found.rightly + found.missed})"
    )
    record_property("policy_packets", told)
    print(told)
    assert found.rightly > LONG_SETS / 2, told
    assert not found.wrong, (
        f"{told}; {len(found.wrong)} sets differ, the first: {next(iter(found.wrong.items()))}"
    )
    assert found.precision >= 0.99, told
    assert found.recall >= 0.99, told
