"""Pods as they appear on this node: their first processes, seen many times a second for little.

The kernel numbers processes: as long as no new one has begun, a look costs the reading of one small file. A
container's first process begins in the cgroup and in the network of whoever starts it, and is moved into the
pod's own before its program runs, so young processes are looked at again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ztprobe.pods.cgroup import pod_uid
from ztprobe.pods.process_table import newest_pid

__all__ = ("Sighting", "Sightings")

_YOUNG_S = 2.0
_LISTED_AT_LEAST_S = 1.0  # a process whose pid is used again begins unseen


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A pod of which something runs."""

    pids: tuple[int, ...]
    since_s: float  # CLOCK_MONOTONIC
    unseen_s: float  # when nothing of it was to be seen yet; the same as since_s: nobody had looked before


class Sightings:
    """By the UIDs that pods' cgroups are named after; what has ended is forgotten.

    :param clock: seconds.
    """

    def __init__(self, proc: Path = Path("/proc"), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._proc, self._clock = proc, clock
        self._known: dict[int, tuple[float, str | None]] = {}  # pid -> since when, its pod's UID
        self._newest, self._listed_s, self._looked_s = 0, -_LISTED_AT_LEAST_S, 0.0
        self._young: set[int] = set()
        self._hosts = {_inode(proc / name / "ns" / "net") for name in ("1", "self")}
        self.pods: dict[str, Sighting] = {}

    def netns(self, uid: str) -> Path | None:
        """The network of a pod's own; None: it has none yet, or nothing of the pod runs any more."""
        for pid in self.pods[uid].pids if uid in self.pods else ():
            if self._uid_of(pid) != uid:  # it has ended, or its number is another one's by now
                continue
            path = self._proc / str(pid) / "ns" / "net"
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino not in self._hosts:
                    return path
        return None

    def look(self) -> None:
        """See who is there now."""
        now_s, newest = self._clock(), newest_pid(self._proc)
        if newest != self._newest or now_s - self._listed_s >= _LISTED_AT_LEAST_S:
            self._list(now_s)
            self._newest = newest
        for pid in sorted(self._young):
            since_s, _ = self._known[pid]
            uid = self._uid_of(pid)
            self._known[pid] = since_s, uid
            if uid is not None:
                self._see(uid, pid, now_s)
            if uid is not None or now_s - since_s > _YOUNG_S:
                self._young.discard(pid)
        self._looked_s = now_s

    def _list(self, now_s: float) -> None:
        self._listed_s = now_s
        there = {int(name) for name in os.listdir(self._proc) if name.isdigit()}
        ended = self._known.keys() - there
        for pid in ended:
            del self._known[pid]
        self._young -= ended
        for pid in there - self._known.keys():
            self._known[pid] = now_s, None
            self._young.add(pid)
        if ended:
            left = {
                uid: replace(one, pids=tuple(pid for pid in one.pids if pid not in ended))
                for uid, one in self.pods.items()
            }
            self.pods = {uid: one for uid, one in left.items() if one.pids}

    def _see(self, uid: str, pid: int, now_s: float) -> None:
        one = self.pods.get(uid)
        if one is None:
            one = Sighting(pids=(), since_s=now_s, unseen_s=self._looked_s or now_s)
        self.pods[uid] = replace(one, pids=(*one.pids, pid))

    def _uid_of(self, pid: int) -> str | None:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            return pod_uid((self._proc / str(pid) / "cgroup").read_text())
        return None


def _inode(netns: Path) -> int:
    try:
        return os.stat(netns).st_ino
    except OSError:
        return 0
