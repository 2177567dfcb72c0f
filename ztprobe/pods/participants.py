"""Who takes part in a deployment: targets resolved to processes, again and again while it is watched.

A *participant* is one party with a role and a name: the server, a client, a hub. What a target names
belongs to it, and what that forks or starts later, for as long as it runs: once a member, always a member.
A command's pattern and labels may stand for several participants, one for each process that they match on
its own account or for each pod; any other target is one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ztprobe.errors import UsageError
from ztprobe.pods.command_line import without_secrets
from ztprobe.pods.labelled import LabelledPods, LocalLabelledPods
from ztprobe.pods.process_table import OneProcess, ProcessTable
from ztprobe.pods.targets import ROLES, Role, Target, in_cgroup

__all__ = ("Member", "Participant", "Participants", "is_proxy_beside")

# Of two targets that a process matches, the one that says more about it has it.
_MOST_TELLING = ("pid", "cmd", "cgroup", "pods", "netns")


@dataclass(frozen=True)
class Member:
    """A process, told from a later one of its number."""

    pid: int
    started_ticks: int


@dataclass
class Participant:
    """One party, and all the processes that it ever had."""

    name: str
    role: Role
    target: str  # as typed; empty: found as a peer
    root: object = None  # what tells it from others of its target
    address: str = ""  # of one on another machine
    netns_inode: int = 0  # of its first process; 0: on another machine
    commands: dict[Member, str] = field(default_factory=dict)
    running: set[Member] = field(default_factory=set)
    # CLOCK_MONOTONIC, of looks: when it was seen first, and when none of its processes was there any more.
    first_seen_ns: int = field(default_factory=time.monotonic_ns)
    ended_ns: int = 0  # 0: they are

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        return not self.address

    def as_dict(self, pod: str) -> dict[str, Any]:
        """As run.json has it. :param pod: the namespace's name there."""
        elsewhere = {"address": self.address} if self.address else {}
        return {
            "name": self.name,
            "role": self.role,
            "target": self.target,
            "netns_inode": self.netns_inode,
            "pod": pod,
            "first_seen_ns": self.first_seen_ns,
            "ended_ns": self.ended_ns,
            "processes": [
                {
                    "pid": one.pid,
                    "started": one.started_ticks,
                    "command": without_secrets(command)[:_MOST_COMMAND],
                }
                for one, command in sorted(self.commands.items(), key=lambda item: item[0].started_ticks)
            ],
        } | elsewhere


_MOST_COMMAND = 512
# Of whom, where it was no target that named them.
_PEER, _ELSEWHERE = "peer", "elsewhere"
_PROXIES = frozenset(("haproxy", "envoy", "linkerd2-proxy", "nginx", "traefik", "ztunnel"))
_NO_APPLICATIONS = frozenset(("dnsmasq", "linkerd-await", "pause", "pilot-agent"))


def is_proxy_beside(program: str, programs: Iterable[str]) -> bool:
    """Whether a program is a proxy, and not alone.

    :param programs: all that run beside it, itself included.
    """
    return program in _PROXIES and bool(set(programs) - _PROXIES - _NO_APPLICATIONS)


class Participants:
    """The participants that some targets name, as of the last `look`.

    :param targets: exactly one of them is the server's.
    :param labelled: whose pods labels mean; None: those of the local runtime.
    """

    def __init__(
        self, targets: Sequence[Target], table: ProcessTable, labelled: LabelledPods | None = None
    ) -> None:
        self._targets = sorted(targets, key=lambda target: _MOST_TELLING.index(target.kind))
        self._table = table
        self._pinned: dict[Target, Member] = {}  # of pid: targets, which mean the process that had it
        self._netns: dict[Target, int] = {}
        self._labelled = labelled or LocalLabelledPods()
        self._by_root: dict[tuple[Target | str, object], Participant] = {}
        self._of: dict[Member, Participant] = {}
        self._own = {os.getpid()}

    @property
    def all(self) -> list[Participant]:
        """The server first, then hubs, then clients in the order in which they came."""
        return sorted(self._by_root.values(), key=lambda one: ROLES.index(one.role))

    @property
    def server(self) -> Participant:
        """:raises LookupError: it has not been found."""
        return next(one for one in self._by_root.values() if one.role == "server")

    def is_sidecar(self, pid: int) -> bool:
        """Whether a process is a proxy beside its participant's application.

        By its program's name, and because the participant has others: one that is a proxy alone is itself
        what takes part.
        """
        process, participant = self._table.get(pid), self.of(pid)
        if process is None or participant is None:
            return False
        programs = {one.program for each in participant.running if (one := self._table.get(each.pid))}
        return is_proxy_beside(process.program, programs)

    def of(self, pid: int) -> Participant | None:
        """Whose process that is; None: nobody's."""
        process = self._table.get(pid)
        return None if process is None else self._of.get(_member(process))

    def first_look(self) -> None:
        """Resolve every target. :raises UsageError: one names nothing, or several servers."""
        self.look()
        for target in self._targets:
            found = [
                one
                for (of, _), one in self._by_root.items()
                if of == target or (of == _ELSEWHERE and one.target == target.text)
            ]
            if not found:
                raise UsageError(f"{target.option}: {self._why_nothing(target)}")
            if target.role == "server" and len(found) > 1:
                if target.kind == "pods":
                    names = ", ".join(sorted(one.name for one in found)[:6])
                    raise UsageError(
                        f"{target.option}: matches {len(found)} pods ({names}), expected the server's alone"
                    )
                pids = sorted(min(member.pid for member in one.running) for one in found)
                which = ", ".join(map(str, pids[:6])) + (", ..." if pids[6:] else "")
                raise UsageError(
                    f"{target.option}: matches {len(found)} processes that have nothing to do with one "
                    f"another ({which}); name the server's with pid:"
                )

    def _why_nothing(self, target: Target) -> str:
        if target.kind == "pid":
            return "no such process"
        if target.kind == "netns":
            return "no such network namespace" if not target.netns.exists() else "no process runs in it"
        if target.kind == "pods":
            return self._labelled.why_nothing(target)
        what = "no process has such a command line" if target.kind == "cmd" else "no process is in it"
        return f"{what}; see `ztprobe attach --list`"

    def look(self) -> list[Participant]:
        """See who is there now. :returns: those that were not there before."""
        self._table.look({member.pid for one in self._by_root.values() for member in one.running})
        self._own |= {one.pid for one in self._table.ancestors(os.getpid())}
        known = set(self._by_root)
        for one in self._by_root.values():
            one.running.clear()
        pods = self._pods()
        matched = {
            process.pid: found
            for process in self._table
            if not self._is_ours(process)
            and (found := self._match(process, pods) or self._peers_pod(process)) is not None
        }
        for process in sorted(self._table, key=lambda one: (one.started_ticks, one.pid)):
            if not self._is_ours(process):
                self._place(process, matched)
        now_ns = time.monotonic_ns()
        for one in self._by_root.values():
            if one.running or not one.is_here:
                one.ended_ns = 0
            elif not one.ended_ns:
                one.ended_ns = now_ns
        return [one for key, one in self._by_root.items() if key not in known]

    def add_peer(self, pid: int) -> Participant:
        """A client that was found by its connection: this process, and what it has started.

        In a pod whose name is known it is the pod with all that runs there: a sidecar may have connected.
        """
        process = self._table[pid]
        pod = self._labelled.pod_of(process)
        participant = self._new(_PEER, pod or pid, "client", "", process, pod)
        self._take(process, participant)
        return participant

    def add_elsewhere(self, address: str) -> Participant | None:
        """A client on another machine, by its address. :returns: None: it is known."""
        if (_ELSEWHERE, address) in self._by_root:
            return None
        name = self._free_name("client", self._labelled.pod_at(address))
        found = Participant(name, "client", "", root=address, address=address)
        self._by_root[_ELSEWHERE, address] = found
        return found

    def _is_ours(self, process: OneProcess) -> bool:
        return process.pid in self._own or process.parent == os.getpid() or not process.command

    def _pods(self) -> Mapping[int, tuple[Target, str]]:
        """pid -> target and pod, of targets that are labels; pods on other nodes take part by their address.

        :raises UsageError: the labels mean no one deployment's pods, or the server's are not here.
        """
        found: dict[int, tuple[Target, str]] = {}
        for target in self._targets:
            if target.kind == "pods":
                meant = self._labelled.look(target, self._table)
                found |= {pid: (target, pod) for pid, pod in meant.processes.items() if pid not in found}
                for address, pod in meant.elsewhere.items():
                    self._take_elsewhere(target, pod, address)
        return found

    def _take_elsewhere(self, target: Target, pod: str, address: str) -> None:
        if target.role == "client" and (_ELSEWHERE, address) not in self._by_root:
            name = self._free_name(target.role, pod)
            there = Participant(name, target.role, target.text, root=address, address=address)
            self._by_root[_ELSEWHERE, address] = there

    def _peers_pod(self, process: OneProcess) -> tuple[str, object] | None:
        """The key of a peer that is a pod, whose process this is."""
        if any(of == _PEER and isinstance(root, str) for of, root in self._by_root):
            key = (_PEER, self._labelled.pod_of(process))
            return key if key in self._by_root else None
        return None

    def _match(
        self, process: OneProcess, pods: Mapping[int, tuple[Target, str]]
    ) -> tuple[Target, object] | None:
        """The target that names this very process, and what of it; None: none does."""
        for target in self._targets:
            if target.kind == "pods":
                if process.pid in pods and pods[process.pid][0] == target:
                    return target, pods[process.pid][1]
            elif self._names(target, process):
                return target, "" if target.kind != "cmd" else None
        return None

    def _names(self, target: Target, process: OneProcess) -> bool:
        if target.kind == "pid":
            if process.pid != target.pid:
                return False
            return self._pinned.setdefault(target, _member(process)) == _member(process)
        if target.kind == "cmd":
            return target.pattern.search(process.command) is not None and not _is_ztprobe(process)
        if target.kind == "cgroup":
            return in_cgroup(target.value, process.cgroups)
        if target not in self._netns:
            try:
                self._netns[target] = target.netns.stat().st_ino
            except OSError:
                self._netns[target] = 0
        return process.netns_inode == self._netns[target] != 0

    def _place(self, process: OneProcess, matched: Mapping[int, tuple[Target | str, object]]) -> None:
        participant = self._of.get(_member(process))
        if participant is None and process.pid in matched:
            target, root = matched[process.pid]
            if root is None:  # of a pattern: the outermost process that it matches, with all below it
                root = process.pid
                for above in self._table.ancestors(process.pid):
                    if matched.get(above.pid, (None,))[0] == target:
                        root = above.pid
                root = self._member_of(root)
            participant = self._by_root.get((target, root))
            if participant is None and isinstance(target, Target):
                participant = self._new(target, root, target.role, target.text, process)
        if participant is None:
            # Started by a member; one whose parent has ended is told by its group or session.
            related = (process.parent, process.group, process.session)
            above_it = [self.of(pid) for pid in related if pid > 1 and pid != process.pid]
            participant = next((one for one in above_it if one is not None), None)
        if participant is not None:
            self._take(process, participant)

    def _member_of(self, pid: int) -> Member:
        return _member(self._table[pid])

    def _take(self, process: OneProcess, participant: Participant) -> None:
        member = _member(process)
        self._of[member] = participant
        participant.running.add(member)
        participant.commands[member] = process.command

    def _new(
        self, of: Target | str, root: object, role: Role, target: str, process: OneProcess, own: str = ""
    ) -> Participant:
        own = of.own_name if isinstance(of, Target) else own
        if isinstance(of, Target) and of.kind == "pods":
            own = str(root)
        one = Participant(
            self._free_name(role, own), role, target, root=root, netns_inode=process.netns_inode
        )
        self._by_root[of, root] = one
        return one

    def _free_name(self, role: Role, own: str = "") -> str:
        taken = {one.name for one in self._by_root.values()}
        if own and own not in taken:
            return own
        if role == "server" and "server" not in taken:
            return "server"
        number = 1
        while f"{own or role}-{number}" in taken:
            number += 1
        return f"{own or role}-{number}"


def _is_ztprobe(process: OneProcess) -> bool:
    """Another trace's own command line holds its pattern, too."""
    words = [word.rpartition("/")[2] for word in process.command.split()]
    return "ztprobe" in words and "trace" in words[words.index("ztprobe") :]


def _member(process: OneProcess) -> Member:
    return Member(process.pid, process.started_ticks)
