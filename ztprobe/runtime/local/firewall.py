"""Load a policy's nftables table into the node and read its counters.

``nft`` runs inside the node's namespace and names its own table only, so that other
tables there (a delay line's, iptables') are never touched.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from ztprobe.errors import EnforcementError
from ztprobe.kernelnet.netns import entered
from ztprobe.policy import NFT_TABLE
from ztprobe.runtime.local import network

__all__ = ("Flow", "counters", "dropped", "load")


class Flow(NamedTuple):
    """What a dropped packet was part of."""

    source: str
    destination: str
    protocol: str  # tcp | udp | icmp
    port: int


def load(node: Path, rules: str, *, replace: bool = False) -> None:
    """Put the rules in force.

    :param replace: in place of those that are (at once; its hooks stay, so that no queued packet is lost).
    :raises EnforcementError: nft refuses them.
    """
    if replace:
        # `add` first: where none was in force, there is no table to flush.
        rules = f"add table ip {NFT_TABLE}\nflush table ip {NFT_TABLE}\n{rules}"
    _nft(node, "-f", "-", text=rules)
    # Emulated loss and reordering must not make connection tracking call a segment invalid,
    # which no rule would then let pass. The setting exists once a rule uses tracking.
    network.write_sysctl(node, "net.netfilter.nf_conntrack_tcp_be_liberal", "1")


def counters(node: Path) -> dict[str, int]:
    """Packets per named counter: established, drop_egress, drop_ingress."""
    listed = json.loads(_nft(node, "-j", "list", "counters", "table", "ip", NFT_TABLE))
    entries = [entry["counter"] for entry in listed["nftables"] if "counter" in entry]
    return {entry["name"]: entry["packets"] for entry in entries}


def dropped(node: Path) -> dict[Flow, int]:
    """Packets dropped so far, per flow."""
    listed = json.loads(_nft(node, "-j", "list", "set", "ip", NFT_TABLE, "dropped"))
    found: dict[Flow, int] = {}
    for entry in listed["nftables"]:
        for item in entry.get("set", {}).get("elem", ()):
            element: dict[str, Any] = item["elem"]
            found[Flow(*element["val"]["concat"])] = element["counter"]["packets"]
    return found


def _nft(node: Path, *arguments: str, text: str | None = None) -> str:
    with entered(node):
        done = subprocess.run(["nft", *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EnforcementError(f"nft {' '.join(arguments)}: {' '.join(done.stderr.split())}")
    return done.stdout
