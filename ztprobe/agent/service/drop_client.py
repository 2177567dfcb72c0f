"""The watcher's side: drops on another node, as its agent sees them.

An agent that goes away is asked again until it is back; what it would have seen meanwhile is lost, and said.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import grpc

from ztprobe.agent.calls import answer_of
from ztprobe.agent.drop_feed import KIND, RECORD, Batch, Hello
from ztprobe.agent.service import wire
from ztprobe.agent.service.client import Connection, error_of, until_none
from ztprobe.errors import ZtprobeError
from ztprobe.pods.model import Pod
from ztprobe.probes.drop_watch import DropAccount

__all__ = ("NodeDrops",)

_AGAIN_S = 2.0
_END_S = 5.0
_MOST_WAITING = 64  # batches: what is not read holds up the agent, and its kernel counts


class NodeDrops:
    """Watches until `close`; a context manager.

    :param connection: to the agent's service; closed with this.
    :param news: set when something has come.
    """

    def __init__(self, connection: Connection, news: threading.Event) -> None:
        self.address = connection.address
        self.record_type, self.kind_type = RECORD, KIND
        self.hello: Hello | None = None  # None: the agent has not answered yet
        self.problem: str | None = None  # why nothing is seen now
        self.is_over = False  # the last batch has come
        self.has_missed = False  # for a while nothing was seen
        self.places: dict[int, str] = {}
        self.unseen: dict[str, str] = {}
        self._connection, self._news = connection, news
        self._symbols: dict[int, str] = {}
        self._accounts: list[DropAccount] = []  # of each time that it was connected
        self._clock_ns = (0, 0)  # the agent's time, and ours when it came
        self._waiting: deque[Batch] = deque()
        self._room = threading.Semaphore(_MOST_WAITING)
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._pods: bytes | None = None
        self._stopping, self._closing = threading.Event(), threading.Event()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._receive, name="node-drops", daemon=True)
        self._thread.start()

    def __enter__(self) -> NodeDrops:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def give(self, pods: Iterable[Pod]) -> None:
        """Watch these from now on, and no others."""
        self._pods = wire.encoded({"pods": [pod.as_dict() for pod in pods]})
        self._said.put(self._pods)

    def stop(self) -> None:
        """See no more. What was seen is complete when `is_over`, or there is a `problem`."""
        self._stopping.set()
        self._said.put(wire.encoded({"stop": True}))

    def symbol(self, address: int) -> str:
        """The function of the agent's kernel that holds an address."""
        return self._symbols.get(address, "")

    def now_ns(self) -> int:
        """The agent's CLOCK_MONOTONIC, late by what a message takes."""
        theirs, ours = self._clock_ns
        return theirs + time.monotonic_ns() - ours

    def read(self) -> list[Batch]:
        """What has come since the last call."""
        found = []
        while self._waiting:
            found.append(self._waiting.popleft())
            self._room.release()
        return found

    def account(self) -> DropAccount:
        """What became of all drops that its kernel saw while it was connected."""
        kept = [asdict(one) for one in self._accounts]
        names = DropAccount.__dataclass_fields__
        return DropAccount(**{name: sum(one[name] for one in kept) for name in names})

    def _receive(self) -> None:
        while not self._closing.is_set():
            try:
                self._follow()
            except grpc.RpcError as error:
                self._lost(str(error_of(error, self.address)))
            except ZtprobeError as error:
                self._lost(f"the agent at {self.address}: {error}")
            except (KeyError, TypeError, ValueError) as error:
                self._lost(f"the agent at {self.address} says what nobody understands: {error!r}")
            if self.is_over or self._stopping.is_set():
                break
            self._closing.wait(_AGAIN_S)
        self._news.set()

    def _lost(self, why: str) -> None:
        if not self._closing.is_set():
            self.problem = why
            self.has_missed = True
            self._news.set()

    def _follow(self) -> None:
        self._said = queue.SimpleQueue()
        if self._pods is not None:
            self._said.put(self._pods)
        stream = self._stream = self._connection.drops(until_none(self._said))
        said = self._said
        try:
            first = True
            for message in stream:
                content = json.loads(message)
                if "hello" in content:
                    self.hello, self.problem = Hello.from_dict(content["hello"]), None
                elif "batch" in content:
                    self._take(Batch.from_dict(content["batch"]), first=first)
                    first = False
                else:
                    answer_of(content, "see its log")
                self._news.set()
            if not self.is_over:
                self._lost(f"the agent at {self.address} has ended")
        finally:
            said.put(None)
            stream.cancel()

    def _take(self, batch: Batch, *, first: bool) -> None:
        self._clock_ns = batch.now_ns, time.monotonic_ns()
        self._symbols |= batch.symbols
        self.places, self.unseen = dict(batch.places), dict(batch.unseen)
        self._accounts = [*(self._accounts if first else self._accounts[:-1]), batch.account]
        while not self._room.acquire(timeout=_AGAIN_S):
            if self._closing.is_set():
                return
        self._waiting.append(batch)
        self.is_over = batch.last

    def close(self) -> None:
        """Idempotent."""
        self._closing.set()
        if self._stream is not None:
            self._stream.cancel()
        self._thread.join(_END_S)
        self._connection.close()
