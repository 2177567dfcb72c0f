"""Dropped packets as lines for people and as dictionaries for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from analysis.report.wording import human_time, plural
from analysis.results.dropped import DropBurst, DroppedPacket

__all__ = ("burst_lines", "packet_dict")

_BARE = "without payload: nothing of the application's is lost"


def burst_lines(bursts: Iterable[DropBurst]) -> Iterator[str]:
    """One line a burst, and below it what the policies say, or what it was."""
    for burst in bursts:
        one = burst.first
        yield "  ".join(part for part in (_when(one), _whom(one), _what(burst), _where(one)) if part)
        for said in one.explanation or ((_BARE,) if one.bare else ()):
            yield f"    {said}"


def _when(one: DroppedPacket) -> str:
    seconds, ns = divmod(one.time_unix_ns, 1_000_000_000)
    clock = datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S")
    when = {0: "set-up", None: "after the rounds"}.get(one.round, f"round {one.round}")
    return f"{clock}.{ns // 1_000_000:03}  {when}"


def _whom(one: DroppedPacket) -> str:
    port = f":{one.target_port}" if one.target_port else ""
    return (
        f"{one.source} -> {one.target}{port} {one.protocol}{f' [{one.tcp_flags}]' if one.tcp_flags else ''}"
    )


def _what(burst: DropBurst) -> str:
    lasted_ns = burst.last_ns - burst.first.ts_ns
    many = f"{plural(burst.packets, 'packet')} in {human_time(lasted_ns / 1e9)}" if burst.packets > 1 else ""
    size = f"{burst.payload_bytes:,} bytes of payload" if burst.payload_bytes else ""
    return ", ".join(part for part in (burst.first.reason, many, size) if part)


def _where(one: DroppedPacket) -> str:
    return f"in {one.pod}{f', {one.location}' if one.location else ''}"


def packet_dict(one: DroppedPacket) -> dict[str, Any]:
    """A packet for programs; times in ns since 1970."""
    return {
        "time_unix_ns": one.time_unix_ns,
        "round": one.round,
        "pod": one.pod,
        "direction": one.direction,
        "source": one.source,
        "target": one.target,
        "protocol": one.protocol,
        "source_port": one.source_port,
        "target_port": one.target_port,
        "tcp_flags": one.tcp_flags,
        "payload_bytes": one.payload_bytes,
        "reason": one.reason,
        "location": one.location,
        "bare": one.bare,
        "verdict": one.verdict or None,
        "policies": list(one.policies),
        "explanation": list(one.explanation),
    }
