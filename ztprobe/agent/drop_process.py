"""Drops in a node's pods, watched for somebody elsewhere: a process of its own for each who asks.

``python -m ztprobe.agent.drop_process SOCKET NODE`` speaks `ztprobe.agent.drop_feed` on the socket that it
was given, one JSON object a line, and ends when the socket is closed on the other side: the program in the
kernel goes with it. Which pods there are it is told; where they are it asks this node's kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ztprobe.agent.calls import answered
from ztprobe.agent.drop_feed import KIND, Batch, Hello
from ztprobe.errors import PreflightError, ZtprobeError
from ztprobe.kernelnet.netns import inode
from ztprobe.pods.cgroup import find_namespaces
from ztprobe.pods.model import Pod, still_there
from ztprobe.pods.placing import placed
from ztprobe.probes.kallsyms import Kallsyms

if TYPE_CHECKING:
    from ztprobe.probes.drop_watch import Collected, DropWatch

__all__ = ("DropsHere",)

_WAIT_S = 0.05
_BATCH_S = 0.02  # after packets came: more of them together
_LEAST_S = 0.5  # between two batches that say nothing new
_FIND_S = 1.0  # between two looks for pods that were not found, or are gone
_MOST_AT_ONCE = 5_000  # records in one go: more than so many kinds at once are counted alone


class DropsHere:
    """The drops of given pods of this node, batch by batch.

    :param watch: loaded.
    """

    def __init__(self, watch: DropWatch) -> None:
        self._watch = watch
        self._symbols, self._named = Kallsyms(), set[int]()
        self._symbols.name_of(1)  # read now, not when the first packet is dropped
        self._given: list[Pod] = []
        self._found: dict[str, Pod] = {}  # by its UID
        self._places: dict[int, str] = {}
        self._unseen: dict[str, str] = {}
        self._looked_s = 0.0
        self._told_s = 0.0

    def give(self, pods: Iterable[Pod]) -> None:
        """Watch these from now on, and no others."""
        self._given = list(pods)
        self._look()

    def _look(self) -> None:
        self._looked_s = time.monotonic()
        seen = find_namespaces()
        self._found, self._unseen = {}, {}
        for pod in self._given:
            try:
                self._found[pod.uid] = placed(pod, (pod.uid,), seen)
            except PreflightError:
                self._unseen[str(pod)] = f"{pod}: the agent of node {pod.node} sees none of its processes"
            except ZtprobeError as error:
                self._unseen[str(pod)] = str(error)
        places: dict[int, str] = {}
        for pod in self._found.values():
            with contextlib.suppress(OSError):  # it has no other end here
                places[inode(pod.node_netns)] = "node"
        places |= {pod.netns_inode: pod.name for pod in self._found.values()}
        for gone in self._places.keys() - places.keys():
            self._watch.forget(gone)
        for new in places.keys() - self._places.keys():
            self._watch.watch(new)
        self._places, self._told_s = places, 0.0

    def _look_again(self) -> None:
        if time.monotonic() - self._looked_s < _FIND_S:
            return
        self._looked_s = time.monotonic()
        if self._unseen or not all(still_there(pod.netns, pod.netns_inode) for pod in self._found.values()):
            self._look()

    def next(self) -> Batch | None:
        """What has come; None: nothing new, and it is too early to say so."""
        self._look_again()
        self._watch.wait(_WAIT_S)
        rows, counted = self._watch.read()
        if not len(rows) and not counted and time.monotonic() - self._told_s < _LEAST_S:
            return None
        return self._batch(rows, counted)

    def rest(self) -> Batch:
        """All that there is; the watch has stopped."""
        return self._batch(*self._watch.read(last=True), last=True)

    def _batch(self, rows: np.ndarray, counted: list[Collected], *, last: bool = False) -> Batch:
        self._told_s = time.monotonic()
        told = rows[:_MOST_AT_ONCE]
        kinds = [bytes(row["kind"]) for row in told] + [each.kind for each in counted]
        return Batch(
            now_ns=time.monotonic_ns(),
            rows=told,
            counted=counted,
            untold=len(rows) - len(told),
            symbols=self._fresh_names(kinds),
            places=self._places,
            unseen=self._unseen,
            account=self._watch.account(),
            last=last,
        )

    def _fresh_names(self, kinds: Iterable[bytes]) -> dict[int, str]:
        found = {_location(kind) for kind in set(kinds)} - self._named
        self._named |= found
        return {address: self._symbols.name_of(address) for address in found}


def _location(kind: bytes) -> int:
    return int(np.frombuffer(kind, KIND)[0]["location"])


def _lines(connection: socket.socket, into: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in connection.makefile("r", encoding="utf-8"):
        into.put(json.loads(line))
    into.put(None)


def _serve(connection: socket.socket, node: str) -> None:
    from ztprobe.probes.drop_watch import DropWatch

    def say(message: dict[str, Any]) -> None:
        connection.sendall((json.dumps(message) + "\n").encode())

    heard: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_lines, args=(connection, heard), daemon=True).start()
    with DropWatch() as watch:
        watch.load()
        here = DropsHere(watch)
        offset_ns = time.time_ns() - time.monotonic_ns()
        say(Hello(node=node, reasons=watch.reason_names, unix_offset_ns=offset_ns).as_dict())
        watch.start()
        while True:
            while not heard.empty():
                said = heard.get()
                if said is None:
                    return
                if said.get("stop"):
                    watch.stop()
                    say(here.rest().as_dict())
                    return
                here.give(map(Pod.from_dict, said["pods"]))
            batch = here.next()
            if batch is not None:
                say(batch.as_dict())
                if len(batch.rows):
                    time.sleep(_BATCH_S)


def _gone_is_well() -> contextlib.suppress:
    return contextlib.suppress(BrokenPipeError, ConnectionResetError)


def _until_gone(connection: socket.socket, node: str) -> None:
    with _gone_is_well():
        _serve(connection, node)


def main() -> int:
    """Watch until the socket closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=int)
    parser.add_argument("node")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=given.socket) as connection, _gone_is_well():
        reply = answered(lambda: _until_gone(connection, given.node))
        if "error" in reply:
            connection.sendall((json.dumps(reply) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
