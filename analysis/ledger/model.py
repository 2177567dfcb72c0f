"""What the ledger says of a run: plain values that statistics, figures and the report build on.

All times are integer nanoseconds. For every round, the components of the critical
path plus the residual equal the duration exactly; `RoundLedger` refuses to exist
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from analysis.intervals import Segment

__all__ = (
    "COMPONENTS",
    "MARKS",
    "SUB_ROWS",
    "ClientRound",
    "ConnectionSetup",
    "FlowFacts",
    "Ledger",
    "Mark",
    "Poller",
    "RoundLedger",
    "Transfer",
)

# Exclusive parts of a round's wall time on the critical path, in path order.
COMPONENTS = (
    "server",
    "compute",
    "dns",
    "tcp_handshake",
    "tls_handshake",
    "http2_setup",
    "proxy",
    "propagation",
    "transmission",
    "retransmission",
    "policy_drop",
    "store_and_forward",
    "poll_wait",
    "task_start",
    "client_and_return_path",
)

# Named parts of a component; they never add time, they say what it consists of.
SUB_ROWS = {
    "server": ("send_preparation", "behind_other_clients", "aggregation", "evaluation", "cpu_wait"),
    "compute": ("cpu_wait", "imports"),
    "proxy": ("cpu_wait",),
    "transmission": (
        "rate_or_queue",
        "congestion_window",
        "receive_or_http2_window",
        "shared_egress",
        "jitter",  # the last byte was delayed by more than the first, where the path delays packets unevenly
    ),
    "task_start": ("imports",),
}


MARKS = ("retransmission", "drop", "handshake", "cpu_wait")  # what is marked on a client's way


class Mark(NamedTuple):
    """Something that happened on a client's way, once or several times close together."""

    kind: str  # of `MARKS`
    start_ns: int
    end_ns: int
    times: int


@dataclass(frozen=True, kw_only=True)
class ClientRound:
    """One client's part of one round; only the critical client's costs the round time."""

    client: str
    # From round_start to the moment the server had the whole update; None: it never came.
    arrival_ns: int | None
    # How much later this client could have been without lengthening the round.
    slack_ns: int
    components_ns: dict[str, int]
    # Training as the kernel saw it (model read .. update written) and as the client logged it.
    compute_kernel_ns: int | None = None
    compute_reported_ns: int | None = None
    syn_count: int = 0
    retransmissions: int = 0  # of originals that never arrived
    needless_retransmissions: int = 0  # the receiver had the bytes already and said so (DSACK)
    # The whole round in pieces that leave no hole; the critical client's are what the components sum up.
    segments: tuple[Segment, ...] = ()
    marks: tuple[Mark, ...] = ()
    # Of its messages as their senders' interfaces had them, with what HTTP/2 and TLS add; None: not counted.
    down_bytes: int | None = None
    up_bytes: int | None = None
    through: tuple[str, ...] = ()  # edge aggregators between the server and it


@dataclass(frozen=True, kw_only=True)
class RoundLedger:
    """One round's wall time, split on its critical path."""

    round: int
    start_ns: int  # CLOCK_MONOTONIC
    duration_ns: int
    critical_client: str | None
    # The runner-up was closer than the measurement error, so the name could be either.
    tie: bool
    components_ns: dict[str, int]
    residual_ns: int
    sub_rows_ns: dict[str, dict[str, int]] = field(default_factory=dict)
    clients: tuple[ClientRound, ...] = ()
    # Whole messages exchanged with the critical client inside the round (one down + one up = 1.0).
    exchanges: float = 0.0
    accuracy: float | None = None
    # Events of this round that were lost, those that were seen over all, and by how much that makes
    # each component uncertain (analysis/coverage.py).
    lost_events: int = 0
    coverage: float = 1.0
    uncertainty_ns: int = 0
    # The edge aggregators on the critical path; then the components by level: (server, client, parts).
    critical_through: tuple[str, ...] = ()
    levels_ns: tuple[tuple[str, str, dict[str, int]], ...] = ()

    def __post_init__(self) -> None:
        if set(self.components_ns) != set(COMPONENTS):
            raise ValueError(f"round {self.round}: components are {sorted(self.components_ns)}")
        total = sum(self.components_ns.values()) + self.residual_ns
        if total != self.duration_ns:
            raise ValueError(f"round {self.round}: {total} ns of components in {self.duration_ns} ns")


@dataclass(frozen=True, kw_only=True)
class ConnectionSetup:
    """What one client's connection cost before it carried its first round."""

    client: str
    components_ns: dict[str, int]  # dns, tcp_handshake, tls_handshake, http2_setup, proxy, policy_drop...
    residual_ns: int
    duration_ns: int
    served_rounds: int
    tls_version: str | None = None
    # "yes", "no", or "not shown again" for a resumed handshake; None without TLS
    mutual: str | None = None
    resumed: bool | None = None
    syn_retransmissions: int = 0
    questions: int = 0  # for names, one after another: not those asked while another one was open


@dataclass(frozen=True, kw_only=True)
class Poller:
    """Who asks somebody again and again whether there is something."""

    who: str
    of: str
    polls: int  # of the whole trace
    pause_ns: int  # the usual time from one's answer to the next


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What was moved between one client and hub or server in one phase of a round."""

    round: int
    client: str
    down_bytes: int
    up_bytes: int
    longest_ns: int  # of the two messages, from the first byte to the last


@dataclass(frozen=True, kw_only=True)
class FlowFacts:
    """What else was seen of a deployment that ran already."""

    path: tuple[str, ...]  # through whom a message goes
    pollers: tuple[Poller, ...]
    older_connections: int  # than the trace: how they were set up was not seen
    new_connections: int  # whose set-up was seen: what of it fell into a round is in the ledger
    transfers: tuple[Transfer, ...]
    # the framework's own limits beside what was measured (`analysis.rounds.timeouts`)
    timeouts: tuple[Mapping[str, Any], ...] = ()
    # what timeouts bound (`ztprobe.frameworks.timeouts.BOUNDS`) -> the longest that was measured of it
    longest_ns: Mapping[str, int] = field(default_factory=dict)
    one_sided: bool = False  # clients were on machines where nobody watched
    # client -> the shortest time in which it acknowledged anything: propagation lies between 0 and that
    round_trips_ns: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_indirect(self) -> bool:
        """Whether others stand between the server and those who train."""
        return self.path != ("server", "client")


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """A run's rounds and connection set-up, with what was lost on the way."""

    rounds: tuple[RoundLedger, ...]
    setup: tuple[ConnectionSetup, ...]
    # events that reached us / events that happened, 0..1
    coverage: float
    notes: tuple[str, ...] = ()
    flow: FlowFacts | None = None  # None: not a deployment that ran already
