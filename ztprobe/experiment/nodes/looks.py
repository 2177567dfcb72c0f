"""One look at a run's pods on several nodes (`ztprobe.agent.stall_snapshot`), by their agents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ztprobe.agent.service.node_session import NodeSession, process_number
from ztprobe.agent.stall_snapshot import StallLook

__all__ = ("look_at_nodes",)


def look_at_nodes(sessions: Sequence[NodeSession]) -> StallLook:
    """Look now, by the clock of the server's node; all of them within moments, so one time stands for all.

    :param sessions: the server's first.
    :raises ZtprobeError: an agent does not answer.
    """
    whole = StallLook(at_s=0.0, addresses={}, ends={}, processes={}, limits={})
    for number, session in enumerate(sessions):
        found = session.client.stall_look()
        processes = {
            pod: {process_number(pid, number): one for pid, one in running.items()}
            for pod, running in found.processes.items()
        }
        whole = dataclasses.replace(
            whole,
            addresses={**whole.addresses, **found.addresses},
            ends={**whole.ends, **found.ends},
            processes={**whole.processes, **processes},
            limits={**whole.limits, **found.limits},
        )
    return dataclasses.replace(whole, at_s=sessions[0].now_ns / 1e9)
