"""What run.json holds of a run that was attached to, as JSON Schema."""

from __future__ import annotations

from typing import Any

__all__ = ("ATTACHMENT",)

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}

# Of a run that was attached to: who took part, found by what, and where its rounds come from. The ends of
# connections that were each participant's are in events/owners.parquet (`ztprobe.events.owners`).
ATTACHMENT: dict[str, Any] = {
    "type": "object",
    "required": ["participants", "framework", "rounds_from", "attached_ns", "detached_ns"],
    "properties": {
        "participants": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "role", "target", "netns_inode", "pod", "processes"],
                "properties": {
                    "name": _TEXT,
                    "role": {"enum": ["server", "client", "hub"]},
                    "target": _TEXT,  # as it was typed; empty: a peer of the server's port
                    "netns_inode": _COUNT,  # 0: on another machine, where nobody watches
                    "pod": _TEXT,  # of run.json's pods; several participants may share one; empty: elsewhere
                    "address": _TEXT,  # of one that is elsewhere
                    # CLOCK_MONOTONIC: first seen; none of its processes was there any more (0: they were)
                    "first_seen_ns": _COUNT,
                    "ended_ns": _COUNT,
                    # all that it ever had, those that have ended too
                    "processes": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["pid", "started", "command"],
                            "properties": {"pid": _COUNT, "started": _COUNT, "command": _TEXT},
                        },
                    },
                },
            },
        },
        # Between processes of participants: what passes there is not seen.
        "unix_sockets": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["participants", "pids", "name"],
                "properties": {
                    "participants": {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 2},
                    "pids": {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2},
                    "name": _TEXT,  # the path or abstract name (with @); empty: none, a pair of sockets
                },
            },
        },
        "framework": {
            "type": "object",
            "required": ["name", "evidence"],
            "properties": {"name": _TEXT, "evidence": {"type": "array", "items": _TEXT}},
        },
        "rounds_from": {
            "type": "object",
            "required": ["source", "uncertainty_ns", "detail"],
            "properties": {
                "source": {"enum": ["events", "log", "traffic"]},
                "uncertainty_ns": _COUNT,
                "detail": _TEXT,
            },
        },
        "attached_ns": _COUNT,  # CLOCK_MONOTONIC: from then on everything was seen
        "detached_ns": _COUNT,
    },
}
