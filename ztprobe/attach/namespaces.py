"""The network namespaces that participants are in, held open and described as pods.

A process may end before others of its namespace do, and with it the way that led there; so each is held by
a descriptor of ours for as long as anybody whom we watch is in it. Names say who is in it where that is one
participant alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ztprobe.errors import PreflightError
from ztprobe.kernelnet.interfaces import interfaces_of
from ztprobe.pods.model import Pod
from ztprobe.pods.participants import Participant
from ztprobe.pods.process_table import ProcessTable

__all__ = ("Held", "Namespaces")

# Pid 1's, where that may be looked at; else the one that this command was started in.
_MACHINES = (Path("/proc/1/ns/net"), Path(f"/proc/{os.getpid()}/ns/net"))
_NOWHERE_BUT_HERE = "127.0.0.1"
_NAMESPACE = "attached"  # what stands where pods of a cluster have their namespace


@dataclass(frozen=True, kw_only=True)
class Held:
    """One namespace, as a pod, and what of it is not seen."""

    pod: Pod
    addresses: tuple[str, ...]
    notes: tuple[str, ...]


class Namespaces:
    """A context manager that lets go of all of them."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}
        self.held: dict[int, Held] = {}  # by inode
        self.ever: dict[int, Held] = {}  # those that were left, too
        for path in reversed(_MACHINES):
            with contextlib.suppress(OSError):
                self._host_inode = os.stat(path).st_ino
                self._host = path

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(self, *_: object) -> None:
        for inode in list(self._fds):
            self.let_go(inode)

    def is_host(self, inode: int) -> bool:
        """Whether it is the machine's own, where everything else runs, too."""
        return inode == self._host_inode

    def renew(
        self, participants: Iterable[Participant], table: ProcessTable
    ) -> tuple[list[Held], list[Held]]:
        """Hold those in which someone runs now.

        :returns: those that are new, and those in which nobody runs any more, still held until `let_go`.
        :raises PreflightError: one cannot be entered.
        """
        inhabited: dict[int, list[tuple[Participant, int]]] = {}
        for one in participants:
            for member in one.running:
                process = table.get(member.pid)
                if process is not None and process.netns_inode:
                    inhabited.setdefault(process.netns_inode, []).append((one, member.pid))
        left = [held for inode, held in self.held.items() if inode not in inhabited]
        new = []
        # The machine's own first: others' packets pass it, which then is no pod of nobody's.
        for inode in sorted(inhabited.keys() - self.held.keys(), key=lambda i: not self.is_host(i)):
            found = self._hold(inode, inhabited[inode])
            if found is not None:
                new.append(found)
        return new, left

    def _hold(self, inode: int, inside: list[tuple[Participant, int]]) -> Held | None:
        for one, pid in inside:
            try:
                fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # it has ended
            if os.fstat(fd).st_ino != inode:
                os.close(fd)
                continue
            path = Path(f"/proc/{os.getpid()}/fd/{fd}")
            try:
                held = self._described(inode, path, {each.name for each, _ in inside})
            except OSError as error:
                os.close(fd)
                whose = one.target or one.name
                raise PreflightError(
                    f"--{one.role} {whose}: its network namespace cannot be entered: {error.strerror}; it "
                    "belongs to another user namespace: run ztprobe where that was made, as its root"
                ) from error
            self._fds[inode], self.held[inode], self.ever[inode] = fd, held, held
            return held
        return None

    def _described(self, inode: int, path: Path, names: set[str]) -> Held:
        found = interfaces_of(path)
        # One that was left before is called as it was then.
        taken = {held.pod.name for known, held in self.ever.items() if known != inode}
        if (before := self.ever.get(inode)) is not None:
            names = {before.pod.name}
        name = "host" if self.is_host(inode) else names.pop() if len(names) == 1 else f"netns-{inode}"
        outward = [address for address in found.addresses if not ip_address(address).is_loopback]
        outward.sort(key=lambda address: ":" in address)  # of IPv4, where there is one
        first, *others = found.names or ("",)
        pod = Pod(
            name=name if name not in taken else f"netns-{inode}",
            namespace=_NAMESPACE,
            address=(outward or [_NOWHERE_BUT_HERE])[0],
            netns=path,
            netns_inode=inode,
            interface=first,
            other_interfaces=tuple(others),
            host_interface="",
            node_netns=self._host,
        )
        unseen = ", ".join(found.unreadable)
        return Held(
            pod=pod,
            addresses=found.addresses,
            notes=(f"{pod.name}: {unseen} has no Ethernet header, and is not watched",) if unseen else (),
        )

    def let_go(self, inode: int) -> None:
        """Hold a namespace no longer."""
        os.close(self._fds.pop(inode))
        del self.held[inode]
