"""Which program put an event into a ring: what a mean run time hides is that few runs have something to say.

A burst is closed by the packet, read or write that follows in the other direction (those that
the end of a socket closes are few, and counted with the former).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from ztprobe.events.tables import Direction, Hook, PointKind

__all__ = ("emissions",)

_BY_POINT = {
    PointKind.STATE: "raw_inet_sock_set_state",
    PointKind.RETRANSMIT: "raw_tcp_retransmit_skb",
    PointKind.DROP: "raw_kfree_skb",
    PointKind.WAIT: "raw_sched_switch",
    PointKind.DSACK: "tc_eth_out",
}
_BY_BURST = {
    (Hook.ETH, Direction.TX): "tc_eth_in",
    (Hook.ETH, Direction.RX): "tc_eth_out",
    (Hook.SOCK, Direction.TX): "raw_sock_recv_length",
    (Hook.SOCK, Direction.RX): "raw_sock_send_length",
}


def emissions(tables: Mapping[str, pd.DataFrame]) -> Counter[str]:
    """Program -> events that it handed over, from the tables of a collector."""
    found: Counter[str] = Counter()
    packets, points, bursts = tables["packets"], tables["points"], tables["bursts"]
    on_lo = packets["laddr"].to_numpy() & 0xFF == 127
    found["tc_lo_out"] += int(on_lo.sum())
    sent = packets["dir"].to_numpy() == Direction.TX
    found["tc_eth_out"] += int((~on_lo & sent).sum())
    found["tc_eth_in"] += int((~on_lo & ~sent).sum())
    for kind, hook in zip(points["kind"], points["b"], strict=True):
        found[_BY_POINT.get(kind) or ("tc_lo_out" if hook == Hook.LO else "tc_eth_out")] += 1
    for hook, direction in zip(bursts["hook"], bursts["dir"], strict=True):
        found[_BY_BURST.get((hook, direction), "tc_lo_out")] += 1
    return found
