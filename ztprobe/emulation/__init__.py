"""What a network profile does to packets.

A profile is put on a pod by `apply` (changed by `profile_change`, over time by `schedule_follower`):
`backends` chooses what does it, `attach_points` where, and `netem` and `tbf` are the kernel's qdiscs; where
it has no netem, `delay_line` is a process that holds the packets. `counters` reads what came of it. Whether
pods get what the profile says is `ztprobe.conformance`; leases are `ztprobe.leases`; the agent's interface to
all of it is `ztprobe.agent.emulator`. Nothing is imported here, because the delay line's process starts
through this package.
"""

from __future__ import annotations

__all__ = ()
