"""Unix sockets between processes of the participants: what passes there is no packet, and is not seen.

So it is said: a participant whose parts speak over one (an application and its proxy, a node and its task)
has a part of its way that no event tells of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ztprobe.kernelnet.sockets import socket_owners
from ztprobe.kernelnet.unix_ends import unix_ends

__all__ = ("UnixLog",)


class UnixLog:
    """What was seen so far.

    :param whose: a process's participant by name; None: nobody's.
    """

    def __init__(self, whose: Callable[[int], str | None]) -> None:
        self._whose = whose
        self._found: set[tuple[tuple[str, int], tuple[str, int], str]] = set()
        self._settled: set[frozenset[int]] = set()  # pairs of inodes

    def look(self, namespaces: Mapping[Path, Iterable[int]]) -> None:
        """See which there are now.

        :param namespaces: network namespace -> the participants' processes in it.
        """
        for netns, pids in namespaces.items():
            with contextlib.suppress(OSError):  # it is gone
                self._look_into(netns, list(pids))

    def _look_into(self, netns: Path, pids: list[int]) -> None:
        pairs: dict[frozenset[int], str] = {}
        for end in unix_ends(netns):
            both = frozenset((end.inode, end.peer_inode))
            if both not in self._settled:
                pairs[both] = pairs.get(both) or end.name
        if not pairs:
            return
        self._settled |= pairs.keys()
        owners = socket_owners(pids)
        for both, name in pairs.items():
            ends = sorted(
                (participant, pid)
                for inode in both
                if (pid := owners.get(inode)) is not None and (participant := self._whose(pid)) is not None
            )
            if len(ends) == 2 and ends[0][1] != ends[1][1]:
                self._found.add((ends[0], ends[1], name))

    def as_list(self) -> list[dict[str, Any]]:
        """As run.json has it."""
        return [
            {"participants": [one[0], other[0]], "pids": [one[1], other[1]], "name": name}
            for one, other, name in sorted(self._found)
        ]
