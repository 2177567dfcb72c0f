"""A ruleset as input for ``nft -f``. Pure."""

from __future__ import annotations

from ztprobe.policy.rules import DIRECTIONS, Isolation, PolicyPod, Rule, Ruleset

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
    # Pods with the same rules share a chain: five clients read as one.
    groups: dict[Isolation, list[PolicyPod]] = {}
    for pod in ruleset.pods:
        if pod.name in ruleset.isolated[direction]:
            groups.setdefault(ruleset.isolated[direction][pod.name], []).append(pod)
    peer = "daddr" if direction == "egress" else "saddr"
    lines: list[str] = []
    jumps: list[str] = []
    for number, (isolation, pods) in enumerate(groups.items()):
        chain = f"{direction}_{number}"
        lines.append(f"  chain {chain} {{")
        for rule in isolation.rules:
            if rule.addresses != ():
                lines.append(f"    {_match(rule, peer)} counter return")
        lines += [
            # A rule of its own: once the set is full this one no longer matches, and the drop must.
            "    update @dropped { ip saddr . ip daddr . meta l4proto . th dport }",
            f"    counter name drop_{direction} drop",
            "  }",
        ]
        jumps += [f"{pod.address} : jump {chain}" for pod in pods]
    return lines, jumps


def _match(rule: Rule, peer: str) -> str:
    parts = []
    if rule.addresses is not None:
        parts.append(f"ip {peer} {{ {', '.join(rule.addresses)} }}")
    if rule.protocol is not None:
        protocol = rule.protocol.lower()
        parts.append(f"meta l4proto {protocol}" if rule.port is None else f"{protocol} dport {rule.port}")
    return " ".join(parts)
