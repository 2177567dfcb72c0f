"""What went between a server and its clients, as whole messages: models down, updates up.

Whatever carries them, parts of one message follow each other in one direction with nothing large in the
other, on one connection or on several at once. Requests, polls, heartbeats and small results are below any
message's size and left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ("LEAST_BYTES", "TrafficMessage", "TrafficTransfer", "messages_of")

# Below are requests, polls, small results, handshakes with certificates; the smallest messages are 20 kB.
LEAST_BYTES = 8 << 10
# Of the usual largest message of a client in a direction; evaluation results and app bundles stay below.
_LEAST_SHARE = 0.2
# Parts of one message come in answer to requests that follow each other without a poll's pause.
_SAME_MESSAGE_NS = 250_000_000


@dataclass(frozen=True, order=True)
class TrafficTransfer:
    """Payload that went one way without a pause; times in CLOCK_MONOTONIC nanoseconds."""

    first_ns: int
    last_ns: int
    client: str
    down: bool  # from the server to the client
    bytes: int


@dataclass(frozen=True, order=True)
class TrafficMessage:
    """A model or an update, whole."""

    first_ns: int
    last_ns: int
    client: str
    down: bool
    bytes: int


def messages_of(transfers: Iterable[TrafficTransfer]) -> list[TrafficMessage]:
    """The messages among the transfers, in the order of time."""
    by_client: dict[str, list[TrafficTransfer]] = defaultdict(list)
    for transfer in sorted(transfers):
        if transfer.bytes >= LEAST_BYTES:
            by_client[transfer.client].append(transfer)
    found = [
        message
        for mine in by_client.values()
        for down in (True, False)
        for message in _large(_joined(mine), down)
    ]
    return sorted(found)


def _joined(transfers: Sequence[TrafficTransfer]) -> list[TrafficMessage]:
    """One client's transfers, parts of the same message as one; two directions may overlap for a moment."""
    joined: list[TrafficMessage] = []
    for one in transfers:
        before = joined[-1] if joined else None
        if (
            before is not None
            and before.down == one.down
            and one.first_ns - before.last_ns <= _SAME_MESSAGE_NS
        ):
            last_ns = max(before.last_ns, one.last_ns)
            joined[-1] = TrafficMessage(
                before.first_ns, last_ns, one.client, one.down, before.bytes + one.bytes
            )
        else:
            joined.append(TrafficMessage(one.first_ns, one.last_ns, one.client, one.down, one.bytes))
    return joined


def _large(messages: Sequence[TrafficMessage], down: bool) -> list[TrafficMessage]:
    mine = [message for message in messages if message.down == down]
    if not mine:
        return []
    largest = sorted(message.bytes for message in mine)
    # One that is larger than all others (a bundle, two messages that ran into each other) is not the measure.
    usual = median(largest[len(largest) // 2 :])
    return [message for message in mine if message.bytes >= _LEAST_SHARE * usual]
