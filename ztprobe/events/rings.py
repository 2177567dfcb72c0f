"""Which ring buffer's records go to which tables; without numpy, for whoever only wants their names."""

from __future__ import annotations

__all__ = ("ATTACHED_TABLES", "RINGS")

# Those that only traces of deployments that ran already have rows of, and runs with secure aggregation; older
# runs have none of them.
ATTACHED_TABLES = ("turns", "process_starts", "module_loads")
# Ring buffer -> the tables that its records go to; they have one size.
RINGS: dict[str, tuple[str, ...]] = {
    "bursts": ("bursts",),
    "packets": ("packets", "dns"),
    "connections": ("connections",),
    "drops": ("drops",),
    "points": (
        *("state_changes", "retransmissions", "duplicate_acks", "gaps", "blocked_readers", "cpu_waits"),
        *ATTACHED_TABLES,
    ),
}
