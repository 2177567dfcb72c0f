"""What the path did to one-way delays: whether last bytes were late because they queued, or delays vary.

A message's last byte may take longer than its first. Three things tell why, all seen and none declared:

- *order*: a queue cannot let packets overtake each other; a path whose delay varies from packet to packet
  does. Packets that arrived behind later ones, and were not sent again, have been overtaken.
- *unloaded delays*: of messages that began while nothing else left the same interface, the first segments
  found no queue of ours. Where their delays differ, the path's own delay varies.
- *pace*: an interface that carries as much as it ever did is one that has no room left. Only together with
  packets that queue does it say that the window was not what held the sender back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from analysis.ledger.timeline import Message

__all__ = ("Delays", "delays_of", "shared_bytes")

# What a busy machine does to a delay, without a network.
_NOISE_NS = 3_000_000
# Of a message's lateness: unloaded delays that differ by so much explain it (the last of thousands of packets
# is drawn from the tail, a few first segments are not).
_EXPLAINED = 1 / 3
# Of the fastest that an interface was seen to be.
_SATURATED = 0.8
_HEADER_BYTES = 66  # Ethernet, IPv4, TCP with time stamps


@dataclass(frozen=True)
class Delays:
    """What is known of the ways between the server and each client."""

    variation_ns: dict[str, int] = field(default_factory=dict)  # client -> how much unloaded delays differ
    fastest_mbit: dict[str, float] = field(default_factory=dict)  # sender -> most that left its interface

    def varies(self, message: Message, repairs: int) -> bool:
        """Whether the path's own delay differs from packet to packet.

        :param repairs: packets of the message that were sent again, needed or not; those arrive late, too.
        """
        if message.arrived is None:
            return False
        if message.arrived.late_packets > repairs:
            return True
        variation_ns = self.variation_ns.get(message.path.client, 0)
        return variation_ns >= max(_NOISE_NS, _EXPLAINED * message.late_ns)

    def queued(self, message: Message, repairs: int) -> bool:
        """Whether the message's last bytes waited behind its first ones."""
        return message.late_ns >= _NOISE_NS and not self.varies(message, repairs)

    def saturated(self, message: Message, sender: str, beside: Sequence[Message]) -> bool:
        """Whether the sender's interface carried all it could while the message was leaving."""
        return _used_mbit(message, beside) >= _SATURATED * self.fastest_mbit.get(sender, float("inf"))


def delays_of(server: str, messages: Iterable[Message]) -> Delays:
    """From all of a run's messages."""
    by_sender: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        by_sender[server if message.down else message.path.client].append(message)
    unloaded_ns: dict[tuple[str, bool], list[int]] = defaultdict(list)
    fastest_mbit: dict[str, float] = {}
    for sender, sent in by_sender.items():
        for message in sent:
            others = [other for other in sent if other is not message]
            if message.arrived is not None and not any(_under_way(o, message.sent.first_ns) for o in others):
                unloaded_ns[message.path.client, message.down].append(message.one_way_ns)
            used_mbit = _used_mbit(message, others)
            fastest_mbit[sender] = max(fastest_mbit.get(sender, 0.0), used_mbit)
    variation_ns: dict[str, int] = defaultdict(int)
    for (client, _), delays_ns in unloaded_ns.items():
        variation_ns[client] = max(variation_ns[client], max(delays_ns) - min(delays_ns))
    return Delays(dict(variation_ns), fastest_mbit)


def _under_way(message: Message, when_ns: int) -> bool:
    end_ns = message.last_arrived_ns
    return message.sent.first_ns <= when_ns < (message.sent.last_ns if end_ns is None else end_ns)


def shared_bytes(message: Message, other: Message) -> int:
    """Bytes of ``other`` that left while ``message`` was leaving, assuming an even pace."""
    mine, others = message.sent, other.sent
    shared_ns = min(mine.last_ns, others.last_ns) - max(mine.first_ns, others.first_ns)
    length_ns = max(1, others.last_ns - others.first_ns)
    return int(others.bytes * max(0, shared_ns) / length_ns)


def _used_mbit(message: Message, beside: Iterable[Message]) -> float:
    """Mbit/s on the wire that left the sender's interface while the message was leaving."""
    mine = message.sent
    payload_bytes = mine.bytes + sum(shared_bytes(message, other) for other in beside)
    wire_bytes = payload_bytes * (1 + _HEADER_BYTES * mine.packets / max(1, mine.bytes))
    return float(wire_bytes * 8e3 / max(1, mine.last_ns - mine.first_ns))
