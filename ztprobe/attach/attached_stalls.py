"""Why a deployment that was attached to hangs: looks at its participants' connections and processes.

Nobody tells what a round waits for. That follows from whose data crossed last: who was sent something and has
not answered is waited for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ztprobe.agent.stall_snapshot import ProcessLook, StallLook, process_look, tcp_limits
from ztprobe.agent.stalls import Stall, StallWatch, Standing
from ztprobe.attach.namespaces import Held, Namespaces
from ztprobe.attach.owner_log import OwnerLog
from ztprobe.attach.rounds import Rounds
from ztprobe.kernelnet.tcp_ends import TcpEnd, tcp_ends
from ztprobe.pods.participants import Participant, Participants

__all__ = ("AttachedStalls", "look_at_participants", "participants_stalls", "who_waits")

# Between two looks: more than polls and heartbeats of frameworks carry, less than any model.
_CONTROL_BYTES = 4096
_CONTROL_CPU_SHARE = 0.05  # of a core: more than what polls, waits and logs


class AttachedStalls:
    """The stalls of one trace.

    :param look: looks at all participants.
    :param roles: names of servers and hubs, and of clients, as they are now.
    :param since_s: when the trace began (CLOCK_MONOTONIC of the server's node, as all times here).
    :param after_s: how long nothing must go on.
    """

    def __init__(
        self,
        look: Callable[[], StallLook],
        roles: Callable[[], tuple[list[str], list[str]]],
        *,
        since_s: float,
        after_s: float,
    ) -> None:
        self._look, self._roles = look, roles
        self._watch = StallWatch(
            after_s,
            since_s=since_s,
            least_bytes=_CONTROL_BYTES,
            least_cpu_share=_CONTROL_CPU_SHARE,
        )
        self._seen_events = 0
        self.found: list[Stall] = []

    def overdue(self, now_s: float, rounds: Rounds) -> Stall | None:
        """A stall, once each time; looks only now and then.

        :param rounds: so far; between two of them nobody waits, and each of their events says that something
            goes on.
        """
        if len(rounds.events) != self._seen_events:
            self._seen_events = len(rounds.events)
            self._watch.moved()
        if rounds.between or not self._watch.due(now_s):
            return None
        stall = self._watch.take(self._look(), round_number=rounds.now)
        if stall is None:
            return None
        waiting, waits_for = who_waits(stall.connections, *self._roles())
        wanted = {frozenset((waiting, one)) for one in waits_for}
        between = tuple(one for one in stall.connections if _ends(one) in wanted) or stall.connections
        self.found.append(
            dataclasses.replace(stall, waiting=waiting, waits_for=waits_for, connections=between)
        )
        return self.found[-1]


def participants_stalls(
    participants: Participants, namespaces: Namespaces, owners: OwnerLog, *, after_s: float
) -> AttachedStalls:
    """Of participants on this machine."""

    def roles() -> tuple[list[str], list[str]]:
        everybody = participants.all
        clients = [one.name for one in everybody if one.role == "client"]
        return [one.name for one in everybody if one.role != "client"], clients

    return AttachedStalls(
        lambda: look_at_participants(participants.all, namespaces.held, owners),
        roles,
        since_s=time.monotonic(),
        after_s=after_s,
    )


def who_waits(
    connections: Sequence[Standing], servers: Collection[str], clients: Collection[str]
) -> tuple[str, tuple[str, ...]]:
    """Who waits for whom, by whose data crossed last; empty: none has.

    A server that has sent to a client waits for that, whatever others wait for.
    """
    asked: dict[str, dict[str, float]] = {}  # who sent last -> to whom, and how long ago
    for one in connections:
        ends = _ends(one)
        if one.last_data_age_s is None or one.last_data_from not in ends or len(ends) != 2:
            continue
        (to,) = ends - {one.last_data_from}
        before = asked.setdefault(one.last_data_from, {})
        before[to] = min(before.get(to, one.last_data_age_s), one.last_data_age_s)
    for group, others in ((servers, clients), (servers, servers), (clients, servers)):
        for name in group:
            if waited := [to for to in asked.get(name, ()) if to in others]:
                return name, tuple(sorted(waited))
    return "", ()


def _ends(one: Standing) -> frozenset[str]:
    return frozenset((one.source.rpartition(":")[0], one.target.rpartition(":")[0]))


def look_at_participants(
    participants: Iterable[Participant], held: Mapping[int, Held], owners: OwnerLog
) -> StallLook:
    """Look now. Takes about a millisecond for each namespace.

    :param held: namespaces, by inode.
    :param owners: whose a connection is in a namespace that several share.
    """
    participants = list(participants)
    inside: dict[int, list[str]] = {}
    for one in participants:
        if one.is_here:
            inside.setdefault(one.netns_inode, []).append(one.name)
    ends: dict[str, list[TcpEnd]] = {}
    limits: dict[str, dict[str, int]] = {}
    addresses = {one.address: one.name for one in participants if one.address}
    for inode, there in inside.items():
        if inode not in held:
            continue  # nobody is in it any more
        netns = held[inode].pod.netns
        with contextlib.suppress(OSError):  # it is gone
            known = tcp_limits(netns)
            found = tcp_ends(netns)
            limits |= dict.fromkeys(there, known)
            for name in there:
                ends.setdefault(name, [])
            for end in found:
                whose = there[0] if len(there) == 1 else owners.whose_end(inode, end.key)
                if whose is not None:
                    ends.setdefault(whose, []).append(end)
        if len(there) == 1:
            addresses |= dict.fromkeys(held[inode].addresses, there[0])
    running: dict[str, dict[int, ProcessLook]] = {one.name: {} for one in participants if one.is_here}
    for one in participants:
        for pid in sorted(member.pid for member in one.running):
            with contextlib.suppress(OSError, ValueError):  # it has ended
                running[one.name][pid] = process_look(pid, one.name)
    return StallLook(
        at_s=time.monotonic(),
        addresses=addresses,
        ends={name: tuple(each) for name, each in ends.items()},
        processes=running,
        limits=limits,
        places={one.name: one.netns_inode for one in participants if one.is_here},
    )
