"""The events that the kernel sends, as numpy types and as saved tables.

``ebpf/events.h`` is the one definition: the numpy types are read from it, so the two
sides cannot drift apart. What a run keeps are three tables (bursts, packets,
points) with the same member names, plus ``pod`` (looked up by network namespace),
and a fourth, pairs, which ties a proxy's two connections together.
"""

from __future__ import annotations

import enum
import re
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ztprobe.paths import EBPF_DIR

if TYPE_CHECKING:
    import pandas as pd

__all__ = (
    "RINGS",
    "Direction",
    "Hook",
    "PacketKind",
    "PointKind",
    "address_number",
    "dtype_of",
    "pairs_table",
    "table_of",
)


class Hook(enum.IntEnum):
    """Where a burst was seen (``enum hook``)."""

    ETH = 1
    LO = 2
    SOCK = 3


class Direction(enum.IntEnum):
    """Which way bytes went (``enum direction``): TX from the key's own end, RX to it."""

    TX = 0
    RX = 1


class PacketKind(enum.IntEnum):
    """Why a packet was passed up (``enum packet_kind``)."""

    SETUP = 1
    PAYLOAD = 2
    DNS = 3


class PointKind(enum.IntEnum):
    """What happened once (``enum point_kind``)."""

    STATE = 1
    RETRANSMIT = 2
    DSACK = 3
    DROP = 4
    GAP = 5
    WAIT = 6
    BLOCKED = 7


# ring buffer -> the struct of its records
RINGS = {"bursts": "burst", "packets": "packet", "points": "point"}

_MEMBER = re.compile(r"^\s*(u8|u16|u32|u64)\s+(\w+)(?:\[(\d+)\])?;", re.MULTILINE)
_STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)


@cache
def _structs() -> dict[str, np.dtype[np.void]]:
    text = re.sub(r"/\*.*?\*/", "", (EBPF_DIR / "events.h").read_text(), flags=re.DOTALL)
    types = {}
    for name, body in _STRUCT.findall(text):
        fields = [
            (member, f"V{length}" if length else f"<u{int(kind[1:]) // 8}")
            for kind, member, length in _MEMBER.findall(body)
        ]
        types[name] = np.dtype(fields)
    return types


def dtype_of(struct: str) -> np.dtype[np.void]:
    """The numpy type of a struct of ``events.h``; its size is the struct's size."""
    return _structs()[struct]


def table_of(struct: str, rows: np.ndarray, pods: dict[int, str]) -> pd.DataFrame:
    """Turn raw rows into a table: one column a member, ports split, ``pod`` added ("" if unknown).

    :param rows: structured array of ``dtype_of(struct)``.
    :param pods: network namespace inode -> pod name.
    """
    import pandas as pd  # not for an agent, which only passes rows on

    columns: dict[str, object] = {}
    for name in dtype_of(struct).names or ():
        if name == "ports":
            columns["lport"] = (rows["ports"] >> 16).astype(np.uint32)
            columns["rport"] = (rows["ports"] & 0xFFFF).astype(np.uint32)
        elif name == "data":
            lengths = rows["data_bytes"]
            columns["data"] = [bytes(data)[:n] for data, n in zip(rows["data"], lengths, strict=True)]
        else:
            # Parquet has no trouble with unsigned, but subtraction does: times are signed from here on.
            columns[name] = rows[name].astype(np.int64)
    columns["pod"] = [pods.get(int(inode), "") for inode in rows["netns"]]
    table = pd.DataFrame(columns)
    order = "first_ns" if "first_ns" in table else "ts_ns"
    return table.sort_values(order, kind="stable", ignore_index=True)


def pairs_table(
    pairs: dict[tuple[tuple[int, ...], tuple[int, ...]], int], pods: dict[int, str]
) -> pd.DataFrame:
    """A proxy's reads and the writes that followed, by thread.

    :param pairs: (netns, laddr, raddr, ports) read from, the same written to -> times.
    """
    import pandas as pd

    rows = []
    for (source, target), count in sorted(pairs.items()):
        row: dict[str, object] = {"pod": pods.get(source[0], ""), "count": count}
        for side, (_, laddr, raddr, ports) in (("from", source), ("to", target)):
            row |= {
                f"{side}_laddr": laddr,
                f"{side}_raddr": raddr,
                f"{side}_lport": ports >> 16,
                f"{side}_rport": ports & 0xFFFF,
            }
        rows.append(row)
    names = ["pod", "count"]
    names += [f"{side}_{name}" for side in ("from", "to") for name in ("laddr", "raddr", "lport", "rport")]
    return pd.DataFrame(rows, columns=names)


def address_number(text: str) -> int:
    """An IPv4 address as events carry it (network order, read as a little-endian integer).

    :raises ValueError: not a dotted IPv4 address.
    """
    return int.from_bytes(bytes(int(part) for part in text.split(".")), "little")
