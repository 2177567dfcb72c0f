"""Deadlines that callers gave their gRPC calls, read where a call's headers are in the clear.

The probes keep the first bytes of a connection's first payloads. gRPC's C core, and Python's with it, writes
names and values without Huffman coding, and ``grpc-timeout`` in full with every call (RFC 7541, 6.2.1; gRPC's
PROTOCOL-HTTP2.md, Requests).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.evidence.identity import Connections
from analysis.flows.exchanges import Exchange, exchanges_of
from analysis.flows.processes import rows_of
from analysis.flows.turns import Channel
from analysis.rounds.timeouts import timeout_row

__all__ = ("deadline_rows",)

# A name's length, the name, a value's length, the value: at most eight digits and a unit.
_TIMEOUT = re.compile(rb"\x0cgrpc-timeout[\x02-\x09](\d{1,8})([HMSmun])")
_METHOD = re.compile(rb"\x05:path[\x03-\x7e](/[\w.]{1,120}/\w{1,120})")
_UNIT_NS = {
    b"H": 3_600_000_000_000,
    b"M": 60_000_000_000,
    b"S": 1_000_000_000,
    b"m": 1_000_000,
    b"u": 1_000,
    b"n": 1,
}


class _Said(NamedTuple):
    """A deadline in a packet."""

    ts_ns: int
    connection: int
    method: str  # empty: not known
    limit_ns: int


def deadline_rows(tables: Mapping[str, pd.DataFrame], channels: Iterable[Channel]) -> list[dict[str, Any]]:
    """The shortest deadline of each method, beside the longest of its calls whose headers were seen.

    Other calls on the same connections may be of other methods, and none of the deadline's business.

    :param tables: ``packets`` and ``connections``.
    :param channels: what was said on each connection.
    """
    key_of = Connections(tables["connections"]).key_of
    calls = {channel.key: exchanges_of(channel.turns) for channel in channels}
    shortest: dict[str, int] = {}
    longest: dict[str, int] = {}
    for said in _deadlines(tables["packets"]):
        method, key = said.method, key_of.get(said.connection)
        shortest[method] = min(said.limit_ns, shortest.get(method, said.limit_ns))
        took_ns = _took_ns(calls.get(key, ()) if key is not None else (), said.ts_ns)
        longest[method] = max(took_ns, longest.get(method, 0))
    return [
        timeout_row(
            name=f"calls of {method}" if method else "gRPC calls",
            bounds="a call whose headers were seen, up to the end of its answer,",
            limit_ns=limit_ns,
            longest_ns=longest[method] or None,
            source="grpc-timeout in the headers of its calls, as they were sent",
            setting="timeout=... of the call",
        )
        for method, limit_ns in sorted(shortest.items())
    ]


def _deadlines(packets: pd.DataFrame) -> Iterator[_Said]:
    """Every deadline that was seen."""
    methods: dict[int, set[str]] = defaultdict(set)
    for row in rows_of(packets.sort_values("ts_ns", kind="stable")):
        data, since = bytes(row.data), 0
        for found in _TIMEOUT.finditer(data):
            named = _METHOD.findall(data, since, found.start())
            since = found.end()
            known = methods[row.connection]
            known.update(name.decode() for name in named)
            # Later calls of a method have a number in the place of its name.
            (only,) = known if len(known) == 1 else ("",)
            method = named[-1].decode() if named else only
            yield _Said(row.ts_ns, row.connection, method, int(found[1]) * _UNIT_NS[found[2]])


def _took_ns(calls: Sequence[Exchange], at_ns: int) -> int:
    """How long the call took whose request was on its way then; 0: it was not seen."""
    return max(
        (
            one.over_ns - one.begun_ns
            for one in calls
            if one.request is not None
            and one.answer is not None
            and one.request.first_ns <= at_ns <= one.request.whole_ns
        ),
        default=0,
    )
