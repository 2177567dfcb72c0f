"""What a node and its hub say to each other, made by hand."""

from __future__ import annotations

from analysis.evidence.values import Endpoint, Wire
from analysis.flows.exchanges import Exchange
from analysis.flows.hops import Talk
from analysis.flows.processes import Process
from analysis.flows.turns import Turn

__all__ = ("HUB", "KEY", "MS", "NODE", "poll", "said", "talk")

MS = 1_000_000
NODE, HUB = Process(1, participant="client"), Process(2, participant="hub")
KEY = Wire(Endpoint("a", 1), Endpoint("b", 2))


def said(asks: bool, first_ms: float, last_ms: float, count: int = 100, way_ms: float = 0.0) -> Turn:
    """A request of the node's or an answer of the hub's."""
    speaker, listener = (NODE, HUB) if asks else (HUB, NODE)
    first, last, way = (int(ms * MS) for ms in (first_ms, last_ms, way_ms))
    return Turn(
        speaker=speaker,
        listener=listener,
        asks=asks,
        first_ns=first,
        last_ns=last,
        arrived_ns=first + way,
        whole_ns=last + way,
        read_ns=0,
        read_whole_ns=0,
        bytes=count,
        first_seq=0,
        pod="",
        key=KEY,
    )


def poll(at_ms: float, took_ms: float = 2.0, count: int = 100) -> Exchange:
    return Exchange(said(True, at_ms, at_ms), said(False, at_ms + took_ms, at_ms + took_ms, count))


def talk(*exchanges: Exchange) -> Talk:
    return Talk(sorted(exchanges, key=lambda one: one.begun_ns))
