"""Dropped packets as lines for people and as dictionaries for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from analysis.report.wording import human_time, plural
from analysis.results.drop_explanations import NOISE
from analysis.results.drops import DropBurst, DroppedPacket

__all__ = ("burst_dict", "burst_lines", "packet_dict")


def burst_lines(bursts: Iterable[DropBurst]) -> Iterator[str]:
    """One line a burst, and below it what the policies say, or what it was."""
    for burst in bursts:
        one = burst.first
        yield "  ".join(part for part in (_when(burst), _whom(one), _what(burst), _where(one)) if part)
        for said in () if burst.is_rest else one.explanation or ((NOISE[one.noise],) if one.noise else ()):
            yield f"    {said}"


def _when(burst: DropBurst) -> str:
    one = burst.first
    # What was told before began then; of the rest it is worth knowing until when.
    at_ns = one.time_unix_ns + (burst.last_ns - one.ts_ns if burst.is_rest else 0)
    seconds, ns = divmod(at_ns, 1_000_000_000)
    clock = datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S")
    when = f"{clock}.{ns // 1_000_000:03}"
    if burst.run:  # which round it is is not known while a run goes on
        return when
    named = {0: "set-up", None: "after the rounds"}
    return f"{when}  {named.get(one.round, f'round {one.round}')}"


def _whom(one: DroppedPacket) -> str:
    port = f":{one.target_port}" if one.target_port else ""
    return (
        f"{one.source} -> {one.target}{port} {one.protocol}{f' [{one.tcp_flags}]' if one.tcp_flags else ''}"
    )


def _what(burst: DropBurst) -> str:
    lasted_ns = burst.last_ns - burst.first.ts_ns
    many = plural(burst.packets, "more packet" if burst.is_rest else "packet")
    if burst.packets > 1:
        many = f"{many} in {human_time(lasted_ns / 1e9)}"
    elif not burst.is_rest:
        many = ""
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
        "noise": one.noise or None,
        "verdict": one.verdict or None,
        "policies": list(one.policies),
        "explanation": list(one.explanation),
    }


def burst_dict(burst: DropBurst) -> dict[str, Any]:
    """A burst for programs: its first packet, how many there were, and the time of the last."""
    lasted_ns = burst.last_ns - burst.first.ts_ns
    return packet_dict(burst.first) | {
        "packets": burst.packets,
        "payload_bytes": burst.payload_bytes,
        "last_time_unix_ns": burst.first.time_unix_ns + lasted_ns,
        "more": burst.is_rest,
    }
