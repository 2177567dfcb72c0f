"""Which program put an event into a ring: what a mean run time hides is that few runs have something to say.

A burst is closed by the packet, read or write that follows in the other direction (those that
the end of a socket closes are few, and counted with the former).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from ztprobe.events.kinds import Direction, Hook

__all__ = ("emissions",)

_BY_TABLE = {
    "state_changes": "raw_inet_sock_set_state",
    "retransmissions": "raw_tcp_retransmit_skb",
    "drops": "raw_kfree_skb",
    "cpu_waits": "raw_sched_switch",
    "duplicate_acks": "tc_eth_out",
    "blocked_readers": "tc_lo_out",
}
_BY_BURST = {
    (Hook.ETH, Direction.TX): "tc_eth_in",
    (Hook.ETH, Direction.RX): "tc_eth_out",
    (Hook.SOCK, Direction.TX): "raw_sock_recv_length",
    (Hook.SOCK, Direction.RX): "raw_sock_send_length",
}
_BY_PACKET = {Direction.TX: "tc_eth_out", Direction.RX: "tc_eth_in"}


def emissions(tables: Mapping[str, pd.DataFrame]) -> Counter[str]:
    """Program -> events that it handed over, from the tables of a collector."""
    found: Counter[str] = Counter({program: len(tables[name]) for name, program in _BY_TABLE.items()})
    connections = tables["connections"]
    on_lo = set(connections["connection"][connections["local"].str.startswith("127.")])
    opened_by: dict[int, str] = {}  # the program that saw a connection's first packet began it
    for connection, direction in zip(
        tables["packets"]["connection"], tables["packets"]["direction"], strict=True
    ):
        program = "tc_lo_out" if connection in on_lo else _BY_PACKET[direction]
        opened_by.setdefault(connection, program)
        found[program] += 1
    for connection in connections["connection"]:
        found[opened_by.get(connection, "raw_sock_recv_length")] += 1
    for direction in tables["dns"]["direction"]:
        found[_BY_PACKET[direction]] += 1
    for hook in tables["gaps"]["hook"]:
        found["tc_lo_out" if hook == Hook.LO else "tc_eth_out"] += 1
    for hook, direction in zip(tables["bursts"]["hook"], tables["bursts"]["direction"], strict=True):
        found[_BY_BURST.get((hook, direction), "tc_lo_out")] += 1
    return found
