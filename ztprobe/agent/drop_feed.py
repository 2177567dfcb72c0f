"""Drops of a node on their way to whoever watches them elsewhere: messages, which are JSON objects. Pure.

The watcher says ``{"pods": [...]}`` at first and whenever they change (`Pod.as_dict`; the UID is the one that
the pod's cgroup is named after), and ``{"stop": true}``. The agent answers with a `Hello`, how its kernel
calls things, and then with a `Batch` at least once a second; or with what went wrong, as
`ztprobe.agent.calls` says it. Times are the agent's CLOCK_MONOTONIC; records and kinds are bytes of
``ebpf/drops.h``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ztprobe.errors import ZtprobeError
from ztprobe.events.layout import plain_structs
from ztprobe.probes.drop_watch import Collected, DropAccount

__all__ = ("KIND", "RECORD", "Batch", "Hello")

KIND, RECORD = plain_structs("drops.h")["drop_kind"], plain_structs("drops.h")["dropped"]
_SIZES = [RECORD.itemsize, KIND.itemsize]


@dataclass(frozen=True, kw_only=True)
class Hello:
    """Of an agent that watches from now on."""

    node: str
    reasons: Mapping[int, str]  # its kernel's numbers -> names
    unix_offset_ns: int  # its wall clock less its CLOCK_MONOTONIC

    def as_dict(self) -> dict[str, Any]:
        """A message."""
        return {"hello": {**asdict(self), "sizes": _SIZES}}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Hello:
        """:raises ZtprobeError: its records are not ours."""
        if said["sizes"] != _SIZES:
            raise ZtprobeError("it is of another version of ztprobe, whose records of drops are different")
        reasons = {int(number): str(name) for number, name in said["reasons"].items()}
        return cls(node=str(said["node"]), reasons=reasons, unix_offset_ns=int(said["unix_offset_ns"]))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What was dropped since the last one."""

    now_ns: int
    rows: np.ndarray  # of RECORD
    counted: list[Collected]
    untold: int  # records that were too many
    symbols: Mapping[int, str]  # addresses that were not named before -> functions
    places: Mapping[int, str]  # network namespace inode -> pod, or "node"
    unseen: Mapping[str, str]  # pods that cannot be watched -> why
    account: DropAccount
    last: bool = field(default=False)

    def as_dict(self) -> dict[str, Any]:
        """A message."""
        counted = [[_text(one.kind), one.packets, one.payload_bytes, one.last_ns] for one in self.counted]
        rest = {
            name: value for name, value in vars(self).items() if name not in ("rows", "counted", "account")
        }
        return {
            "batch": {
                **rest,
                "rows": _text(self.rows.tobytes()),
                "counted": counted,
                "account": asdict(self.account),
            }
        }

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Batch:
        """:raises (KeyError, TypeError, ValueError): it is none."""
        counted = [
            Collected(kind=_kind(kind), packets=int(packets), payload_bytes=int(size), last_ns=int(last))
            for kind, packets, size, last in said["counted"]
        ]
        return cls(
            now_ns=int(said["now_ns"]),
            rows=np.frombuffer(base64.b64decode(said["rows"]), RECORD),
            counted=counted,
            untold=int(said["untold"]),
            symbols={int(address): str(name) for address, name in said["symbols"].items()},
            places={int(inode): str(name) for inode, name in said["places"].items()},
            unseen={str(pod): str(why) for pod, why in said["unseen"].items()},
            account=DropAccount(**said["account"]),
            last=bool(said["last"]),
        )


def _kind(text: str) -> bytes:
    content = base64.b64decode(text)
    if len(content) != KIND.itemsize:
        raise ValueError(f"a kind of {len(content)} bytes")
    return content


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
