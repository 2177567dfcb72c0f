"""A ruleset as input for ``nft -f``. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from ztprobe.policy.compiled import Compiled
from ztprobe.policy.compiled_rules import CompiledRule, PolicyGroup
from ztprobe.policy.fields import IPNetwork
from ztprobe.policy.model import DIRECTIONS, AddressBlock
from ztprobe.policy.rules import PolicyPod, Ruleset

__all__ = ("NFT_TABLE", "to_nft")

NFT_TABLE = "ztprobe_policy"


def to_nft(ruleset: Ruleset, priority: int = -160) -> str:
    """The ruleset as input for ``nft -f``: one table, hooked into the forward path.

    A dropped packet counts in ``drop_egress`` or ``drop_ingress`` and, by its source,
    destination, protocol and port, in the set ``dropped``. The table only drops: what
    it accepts goes on to the other chains of the hook.

    :param priority: after connection tracking (-200) and before mangle (-150), where a
        delay line may hold packets: a forbidden packet must neither wait in it nor
        take room from others.
    """
    lines = [
        f"table ip {NFT_TABLE} {{",
        "  counter established { }",
        *(f"  counter drop_{direction} {{ }}" for direction in DIRECTIONS),
        "  set dropped {",
        "    type ipv4_addr . ipv4_addr . inet_proto . inet_service",
        "    size 4096; flags dynamic; counter;",
        "  }",
        # Empty, for ztprobe.conformance.policy_bypass: were it made and removed when it is needed, the kernel
        # would drop all that queues hold (a delay line's packets) each time the hook goes.
        "  chain probes { type filter hook prerouting priority -300; }",
    ]
    maps: dict[str, list[str]] = {}
    for direction in DIRECTIONS:
        chains, maps[direction] = _chains(ruleset, direction)
        lines += chains
    lines += [
        "  chain forward {",
        f"    type filter hook forward priority {priority}; policy accept;",
        "    ct state established,related counter name established accept",
    ]
    for direction, address in zip(DIRECTIONS, ("saddr", "daddr"), strict=True):
        if maps[direction]:
            lines.append(f"    ip {address} vmap {{ {', '.join(maps[direction])} }}")
    return "\n".join([*lines, "  }", "}", ""])


def _chains(ruleset: Ruleset, direction: str) -> tuple[list[str], list[str]]:
    # Pods that the same policies select share a chain: five clients read as one.
    groups: dict[PolicyGroup, list[PolicyPod]] = {}
    for pod in ruleset.pods:
        group = ruleset.compiled.group_of(ruleset.slot(pod.name), direction)
        if group.serials:
            groups.setdefault(group, []).append(pod)
    lines: list[str] = []
    jumps: list[str] = []
    for number, (group, pods) in enumerate(groups.items()):
        chain = f"{direction}_{number}"
        matches = dict.fromkeys(
            match
            for serial in group.serials
            for rule in ruleset.compiled.policies[serial].rules[direction]
            for match in _matches(ruleset.compiled, rule, group, direction)
        )
        lines += [
            f"  chain {chain} {{",
            *(f"    {match}{' ' if match else ''}counter return" for match in matches),
            # A rule of its own: once the set is full this one no longer matches, and the drop must.
            "    update @dropped { ip saddr . ip daddr . meta l4proto . th dport }",
            f"    counter name drop_{direction} drop",
            "  }",
        ]
        jumps += [f"{pod.address} : jump {chain}" for pod in pods]
    return lines, jumps


def _matches(compiled: Compiled, rule: CompiledRule, group: PolicyGroup, direction: str) -> Iterator[str]:
    peer = "daddr" if direction == "egress" else "saddr"
    if rule.ports is None:
        yield from _addresses(compiled, rule.peers, None, peer)
        return
    for port in rule.ports:
        if port.unsure:  # of pods here all names are known
            continue
        protocol = port.protocol.lower()
        if (port.first, port.last) == (0, 65535):
            text = f"meta l4proto {protocol}"
        else:
            last = "" if port.last == port.first else f"-{port.last}"
            text = f"{protocol} dport {port.first}{last}"
        receivers = port.receivers
        if receivers is not None and direction == "ingress":
            # The name is the subject's own: its whole class has that number for it, or none has.
            if (port.protocol, port.name, port.first) not in (group.named_ports or ()):
                continue
            receivers = None
        for addresses in _addresses(compiled, rule.peers, receivers, peer):
            yield f"{addresses} {text}".lstrip()


def _addresses(
    compiled: Compiled, peers: tuple[int, ...] | None, receivers: int | None, peer: str
) -> Iterator[str]:
    # What matches the peers, and of those only the receivers; networks by themselves, for who is outside.
    selections = compiled.selections
    if peers is None and receivers is None:
        yield ""
        return
    slots: set[int] = set()
    for number in (receivers,) if peers is None else peers:
        assert number is not None
        key = selections.key_of(number)
        if isinstance(key, AddressBlock) and receivers is None:
            if key.network.version == 4:
                inner = ", ".join(map(str, ipaddress.collapse_addresses(_four(key.excepted))))
                excepted = f" ip {peer} != {{ {inner} }}" if inner else ""
                yield f"ip {peer} {key.network}{excepted}"
        else:
            slots.update(selections.slots(number)[0].tolist())
    if receivers is not None:
        slots &= set(selections.slots(receivers)[0].tolist())
    addresses = [selections.endpoints[slot].address for slot in sorted(slots)]
    if addresses:
        yield f"ip {peer} {{ {', '.join(map(str, addresses))} }}"


def _four(networks: tuple[IPNetwork, ...]) -> list[ipaddress.IPv4Network]:
    return [one for one in networks if isinstance(one, ipaddress.IPv4Network)]
