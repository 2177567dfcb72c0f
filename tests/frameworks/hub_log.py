"""What a SuperLink's own log says of messages: since when each was there, and when it was asked for.

Under FLWR_LOG_LEVEL=DEBUG it has a line with the time for every request that it handles. A SuperNode handles
one message at a time: when it asked for the last time before it pushed a reply, it was given the message.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

__all__ = ("HubWait", "hub_waits")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LINE = re.compile(r"(?:DEBUG|INFO) (?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ?: +(?P<text>.*)")
_ACCESS = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3})Z \w+ \[uvicorn\.access\] "
    r'(?P<peer>[\d.]+:\d+) - "POST /v1/(?P<api>fleet|runtime)/push-(?:object|messages) '
)
_ASKED = re.compile(r"\[Fleet\.PullMessages\] node_id=(?P<node>\d+)")
_REPLIED = re.compile(r"\[Fleet\.PushMessages\] Push replies from node_id=(?P<node>\d+)")
_NODE = re.compile(r"SuperNode ID: (?P<node>\d+)")
_PROXIED = re.compile(r'^\{.*"peer":"(?P<peer>[\d.]+:\d+)".*"from":"(?P<from>[\d.]+:\d+)"', re.MULTILINE)
# What the ServerApp puts there for one phase of a round follows without such a pause.
_PAUSE_NS = 1_000_000_000
# Who was refused a part asks again after 1 s, a fifth more or less (inflatable_utils.py).
_ASKS_AGAIN_NS = 800_000_000


@dataclass(frozen=True)
class HubWait:
    """A message that lay there; times in Unix nanoseconds."""

    client: int  # by number
    down: bool  # a model for the client; otherwise its reply for the ServerApp
    stored_ns: int
    served_ns: int  # not before it was stored


@dataclass
class _Told:
    asked: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    replied: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    parts: list[int] = field(default_factory=list)  # of replies, whosever
    pushed: list[tuple[int, str]] = field(default_factory=list)  # by whose address
    put: list[int] = field(default_factory=list)
    pulled: list[int] = field(default_factory=list)
    pulled_parts: list[int] = field(default_factory=list)


def hub_waits(logs: Path, addresses: Mapping[str, int]) -> list[HubWait]:
    """Every message's wait with the SuperLink, as far as its log tells it apart from others.

    :param logs: of the deployment: the SuperLink's, the SuperNodes', and its proxy's, where it has one.
    :param addresses: of clients' hosts -> their numbers.
    """
    told = _read(_lines(logs / "superlink.log"))
    nodes = {}
    for file in logs.glob("supernode-*.log"):
        number = file.stem.removeprefix("supernode-")
        found = _NODE.search(_COLOUR.sub("", file.read_text(errors="replace")))
        if found is not None and number.isdigit():
            nodes[found["node"]] = int(number)
    peers = _behind_proxy(logs / "proxy-fl-server.log")
    whose = [
        (ns, addresses[address])
        for ns, peer in told.pushed
        if (address := peers.get(peer, peer).rpartition(":")[0]) in addresses
    ]
    waits = []
    for node, replies in told.replied.items():
        for replied_ns in replies:
            waits += _down(told, node, nodes[node], replied_ns)
            waits += _up(told, node, nodes[node], replied_ns, whose)
    return sorted(waits, key=lambda wait: wait.served_ns)


def _lines(file: Path) -> Iterable[str]:
    return _COLOUR.sub("", file.read_text(errors="replace")).splitlines()


def _read(lines: Iterable[str]) -> _Told:
    told = _Told()
    for line in lines:
        if (found := _ACCESS.search(line)) is not None:
            at = datetime.strptime(found["time"], "%Y-%m-%dT%H:%M:%S.%f").replace(tzinfo=UTC)
            if found["api"] == "fleet":
                told.pushed.append((_ns(at), found["peer"]))
            else:  # answered: the line before it is written when it has come
                told.put.append(_ns(at))
        elif (found := _LINE.match(line)) is not None:
            at_ns = _ns(datetime.strptime(found["time"], "%Y-%m-%d %H:%M:%S,%f").astimezone())
            text = found["text"]
            if (by := _ASKED.match(text)) is not None:
                told.asked[by["node"]].append(at_ns)
            elif (by := _REPLIED.match(text)) is not None:
                told.replied[by["node"]].append(at_ns)
            elif text.startswith("[Fleet.PushObject]"):
                told.parts.append(at_ns)
            elif text.startswith(("Runtime.PushMessages", "Runtime.PushObject")):
                told.put.append(at_ns)
            elif text.startswith("Runtime.PullMessages"):
                told.pulled.append(at_ns)
            elif text.startswith("Runtime.PullObject"):
                told.pulled_parts.append(at_ns)
    return told


def _ns(at: datetime) -> int:
    return round(at.timestamp() * 1000) * 1_000_000


def _behind_proxy(file: Path) -> dict[str, str]:
    """The proxy's end of a connection to the SuperLink -> the client's that it is for."""
    # No JSON: what a connection took so far stands there with a plus sign.
    text = file.read_text(errors="replace") if file.exists() else ""
    return {line["from"]: line["peer"] for line in _PROXIED.finditer(text)}


def _down(told: _Told, node: str, number: int, replied_ns: int) -> Iterable[HubWait]:
    asked = [ns for ns in told.asked[node] if ns < replied_ns]
    if not asked:
        return
    before = [ns for ns in told.put if ns <= asked[-1]]
    if not before:
        return
    stored_ns = before[-1]
    for earlier_ns, later_ns in pairwise(ns for ns in told.put if ns >= before[-1]):
        if later_ns - earlier_ns >= _PAUSE_NS:
            break
        stored_ns = later_ns
    if asked[-1] >= stored_ns:  # otherwise it asks for parts again, and no line tells whose
        yield HubWait(number, True, stored_ns, asked[-1])


def _up(
    told: _Told, node: str, number: int, replied_ns: int, whose: Iterable[tuple[int, int]]
) -> Iterable[HubWait]:
    next_ns = min((ns for ns in told.asked[node] if ns > replied_ns), default=None)
    pulled_ns = min((ns for ns in told.pulled if ns >= replied_ns), default=None)
    if pulled_ns is None or next_ns is None:
        return
    mine = [ns for ns, by in whose if by == number and replied_ns <= ns <= next_ns]
    if not mine:
        others = [
            ns
            for other, replies in told.replied.items()
            if other != node
            for ns in replies
            if replied_ns - 5 * _PAUSE_NS < ns < next_ns
        ]
        if others:  # whose the parts are cannot be told
            return
        mine = [replied_ns, *(ns for ns in told.parts if replied_ns <= ns <= next_ns)]
    if pulled_ns >= max(mine) and not _waits_for_parts(told, pulled_ns):
        yield HubWait(number, False, max(mine), pulled_ns)


def _waits_for_parts(told: _Told, pulled_ns: int) -> bool:
    """Whether what was asked for then was not whole yet.

    The ServerApp takes a reply whose parts are still on their way, and asks for these again and again, with
    pauses of about a second and more, before it turns to the next reply: when that was taken, no line tells.
    """
    next_ns = min((ns for ns in told.pulled if ns > pulled_ns), default=pulled_ns + 10 * _PAUSE_NS)
    asked = [pulled_ns, *(ns for ns in told.pulled_parts if pulled_ns <= ns < next_ns)]
    return any(later_ns - earlier_ns >= _ASKS_AGAIN_NS for earlier_ns, later_ns in pairwise(asked))
