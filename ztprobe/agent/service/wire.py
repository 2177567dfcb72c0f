"""What both sides of the agent's service know: its methods, their bytes, and how the two trust each other.

There are no generated messages. ``Call`` takes and gives one JSON object (`ztprobe.agent.calls`, with the
session and the number of the call beside it). ``Events`` is a stream each way: the collector says
``{"session": TOKEN, "after": SEQUENCE}`` and then ``{"ack": SEQUENCE}`` for what it has taken; the agent
sends batches, each an 8-byte sequence number and an Arrow IPC stream (`ztprobe.agent.spool`). ``Drops`` is a
stream each way without a session, JSON objects both (`ztprobe.agent.drop_feed`).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ztprobe.documents.files import read_bytes
from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_json import parse_json
from ztprobe.errors import UsageError

__all__ = (
    "CALL",
    "DROPS",
    "EVENTS",
    "NO_MORE",
    "OPTIONS",
    "SERVER_NAME",
    "SERVICE",
    "WINDOW",
    "Tls",
    "TlsContents",
    "TlsFiles",
    "decoded",
    "encoded",
    "framed",
    "unframed",
)

SERVICE = "ztprobe.Agent"
CALL, EVENTS, DROPS = "Call", "Events", "Drops"
# Whoever the collector reaches by an address has to show a certificate of this name.
SERVER_NAME = "ztprobe-agent"
WINDOW = 8  # batches on their way that have not been acknowledged
NO_MORE = (1 << 63) - 1  # a batch of this number: that was all, and the names of the rest are lost

# The library would log on standard error what its callers hear as errors, and forks of ours.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

_MOST_BYTES = 32 << 20
_MOST_PEM_BYTES = 1 << 20
# A connection that is gone without a word is noticed within 15 s, on both sides.
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", _MOST_BYTES),
    ("grpc.max_send_message_length", _MOST_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)


class Tls(Protocol):
    """One's own certificate and key, and the authority that the other side's is from."""

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Certificate, key, authority, as PEM. :raises UsageError: one of them cannot be had."""
        ...


@dataclass(frozen=True, kw_only=True)
class TlsContents:
    """A `Tls` that is no file."""

    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes

    def read(self) -> tuple[bytes, bytes, bytes]:
        """See `Tls`."""
        return self.certificate, self.key, self.authority


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files: one's own certificate and key, and the authority that the other side's is from."""

    certificate: Path
    key: Path
    authority: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Certificate, key, authority. :raises UsageError: one of them cannot be read, or is none."""
        found = []
        for path in (self.certificate, self.key, self.authority):
            try:
                content = read_bytes(path, _MOST_PEM_BYTES)
            except DocumentError as error:
                raise UsageError(error.at(path)) from error
            if b"-----BEGIN " not in content:
                raise UsageError(f"{path}: is no PEM file, expected one that begins with -----BEGIN")
            found.append(content)
        return found[0], found[1], found[2]


def encoded(value: Any) -> bytes:
    """A JSON message."""
    return json.dumps(value).encode()


def decoded(message: bytes) -> dict[str, Any]:
    """:raises DocumentError: it is no JSON object."""
    try:
        value = parse_json(message.decode())
    except UnicodeDecodeError as error:
        raise DocumentError("is not UTF-8 text") from error
    if not isinstance(value, dict):
        raise DocumentError("is no JSON object")
    return value


def framed(sequence: int, batch: bytes) -> bytes:
    """A message of ``Events``."""
    return sequence.to_bytes(8, "big") + batch


def unframed(message: bytes) -> tuple[int, bytes]:
    """Sequence number and batch."""
    return int.from_bytes(message[:8], "big"), message[8:]
