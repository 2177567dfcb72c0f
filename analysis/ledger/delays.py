"""What the path did to one-way delays: whether last bytes were late because they queued, or delays vary.

All of it is seen, and nothing declared:

- *order of arrival*: a queue cannot let packets overtake each other; a path whose delay varies from packet to
  packet does. Packets that arrived behind later ones, and were not sent again, have been overtaken.
- *unloaded delays*: of messages that began while nothing else left the same interface, the first segments
  found no queue of ours. Where their delays differ, the path's own delay varies.
- *what the last byte waited*, above the shortest unloaded delay: more than a way across the network itself
  takes is a window full of packets that wait for one another, and such a window limits nothing.
- *the sender's round trip* when it sent bytes again, above its shortest one: how full queues were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from analysis.evidence.values import Retransmission
from analysis.ledger.timeline import HopMessage

__all__ = ("Delays", "delays_of")

# What a busy machine does to a delay, without a network.
_NOISE_NS = 3_000_000
# A queue that is full holds more than a busy machine may delay acknowledgements.
_FULL_QUEUE_US = 20_000
# Of a message's packets: several CPUs that handle one connection swap a few, a delay that varies nearly all.
_OVERTAKEN = 0.02
# Of a message's lateness: unloaded delays that differ by so much explain it (the last of thousands of packets
# is drawn from the tail, a few first segments are not).
_EXPLAINED = 1 / 3


@dataclass(frozen=True)
class Delays:
    """What is known of the way between the server and each client."""

    variation_ns: dict[str, int] = field(default_factory=dict)  # client -> by how much unloaded delays differ
    shortest_ns: dict[str, int] = field(default_factory=dict)  # client -> the shortest unloaded delay

    def varies(self, message: HopMessage, repairs: int) -> bool:
        """Whether the path's own delay differs from packet to packet.

        :param repairs: packets of the message that were sent again, needed or not; those arrive late, too.
        """
        if message.arrived is None:
            return False
        if message.arrived.late_packets - repairs > _OVERTAKEN * message.arrived.packets:
            return True
        variation_ns = self.variation_ns.get(message.path.client, 0)
        return variation_ns >= max(_NOISE_NS, _EXPLAINED * message.late_ns)

    def fills_windows(self, message: HopMessage, repairs: int) -> bool:
        """Whether the message's packets waited for one another longer than the way takes."""
        if message.last_arrived_ns is None or self.varies(message, repairs):
            return False
        shortest_ns = self.shortest_ns.get(message.path.client, 0)
        waited_ns = message.last_arrived_ns - message.sent.last_ns - shortest_ns
        return waited_ns >= max(_NOISE_NS, shortest_ns)

    def queue_was_full(self, message: HopMessage, repairs: int, copy: Retransmission) -> bool:
        """Whether queues were full of packets when one of the message's was sent again."""
        return copy.rtt_excess_us >= _FULL_QUEUE_US and not self.varies(message, repairs)


def delays_of(server: str, messages: Iterable[HopMessage]) -> Delays:
    """From all of a run's messages."""
    by_sender: dict[str, list[HopMessage]] = defaultdict(list)
    for message in messages:
        by_sender[server if message.down else message.path.client].append(message)
    unloaded_ns: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for sent in by_sender.values():
        for message in sent:
            beside = (other for other in sent if other is not message)
            if message.arrived is not None and not any(_under_way(o, message.sent.first_ns) for o in beside):
                unloaded_ns[message.path.client, message.down].append(message.one_way_ns)
    variation_ns: dict[str, int] = {}
    shortest_ns: dict[str, int] = {}
    for (client, _), delays_ns in unloaded_ns.items():
        differ_ns, least_ns = max(delays_ns) - min(delays_ns), min(delays_ns)
        variation_ns[client] = max(variation_ns.get(client, 0), differ_ns)
        shortest_ns[client] = min(shortest_ns.get(client, least_ns), least_ns)
    return Delays(variation_ns, shortest_ns)


def _under_way(message: HopMessage, when_ns: int) -> bool:
    end_ns = message.last_arrived_ns
    return message.sent.first_ns <= when_ns < (message.sent.last_ns if end_ns is None else end_ns)
