"""What events say by name: how saved tables spell it, and the numbers where the kernel has no other."""

from __future__ import annotations

import enum

__all__ = ("NODE", "Direction", "EventKind", "Family", "Hook", "TcpState", "name_of")

NODE = "node"  # the pod's name, of what happened in the namespaces between pods


class Hook(enum.StrEnum):
    """Where something was seen (``enum hook``, whose numbers `layout.enums` has)."""

    ETH = "eth"
    LO = "lo"
    SOCK = "sock"


class Direction(enum.StrEnum):
    """Which way bytes went (``enum direction``): TX from the local end, RX to it."""

    TX = "tx"
    RX = "rx"


class EventKind(enum.IntEnum):
    """What a record of a ring is (``enum event_kind``)."""

    BURST = 1
    SETUP = 2
    PAYLOAD = 3
    DNS = 4
    CONNECTION = 5
    DROP = 6
    STATE_CHANGE = 7
    RETRANSMISSION = 8
    DUPLICATE_ACK = 9
    GAP = 10
    BLOCKED_READER = 11
    CPU_WAIT = 12
    TURN = 13
    PROCESS_START = 14
    MODULE_LOAD = 15


class TcpState(enum.IntEnum):
    """The kernel's TCP states (include/net/tcp_states.h)."""

    UNKNOWN = 0
    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12
    BOUND_INACTIVE = 13


class Family(enum.IntEnum):
    """Address families (include/linux/socket.h)."""

    UNKNOWN = 0
    IPV4 = 2
    IPV6 = 10


def name_of(member: enum.IntEnum) -> str:
    """How a saved table spells it: ``setup``, ``established``, ``ipv4``."""
    return member.name.lower()
