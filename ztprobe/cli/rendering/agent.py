"""What ``ztprobe agent status`` says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

__all__ = ("status_lines",)

_MIB = 1 << 20


def status_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """An agent's own account, for people.

    :param found: as `ztprobe.agent.service.server.AgentServer.status` gives it.
    """
    yield f"agent {found['version']} on {found['node'] or 'this node'}, since {_time(found['since_unix_s'])}"
    yield f"  the service holds {_mib(found['memory'])}; all its processes together {_all_mib(found)}"
    for lack in found["lacks"]:
        yield f"  {lack}"
    for session in found["sessions"]:
        yield f"run {session['run']}, since {_time(session['opened_unix_s'])}"
        if session["watching"]:
            memory = session["memory"]
            yield f"  watches {len(session['pods'])} pods: {', '.join(session['pods']) or 'none yet'}"
            if memory is not None:
                maps_mib = memory["kernel_maps_bytes"] / _MIB
                yield f"  holds {_mib(memory)}, and {maps_mib:.1f} MiB in the kernel"
        else:
            yield "  left by an agent that has ended: only its queue is here"
        if session["profile"]:
            yield f"  profile {session['profile']} is in force"
        queue = session["queue"]
        lost = ", ".join(f"{kind} {count}" for kind, count in queue["lost"].items())
        yield (
            f"  {queue['rows']} events wait ({queue['bytes'] / _MIB:.1f} MiB)"
            f"; lost for want of room: {lost or 'none'}"
        )
    if not found["sessions"]:
        yield "no run"
    for lease in found["leases"]:
        yield (
            f"lease {lease['lease']}: {lease['profile']} {lease['state']} on {', '.join(lease['pods'])},"
            f" {lease['remaining_s']:.0f} s left"
        )
    if not found["leases"]:
        yield "no lease"


def _mib(memory: Mapping[str, int]) -> str:
    return f"{memory['resident_bytes'] / _MIB:.1f} MiB"


def _all_mib(found: Mapping[str, Any]) -> str:
    # What they share counts once. (Older agents do not say it.)
    return f"{found['resident_bytes'] / _MIB:.1f} MiB" if "resident_bytes" in found else "unknown"


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
