"""A network profile on a node's pods: applied, measured, undone. The one interface the agent uses.

Every FL pod's egress is shaped, so each direction is shaped once. The delay acts between
the sender's tc egress programs and the receiver's tc ingress, whichever backend does it:

- ``none``: the profile asks for nothing;
- ``netem``: the kernel's own, on the pod's interface, wherever the kernel has it;
- ``nfqueue``: the userspace delay line on the node's forward path, where it has not;
- ``tbf`` (a rate alone), ``nfqueue+tbf``: a token bucket on the pod's interface.

A profile with a schedule begins with its first step; `Emulator.follow` starts the others, which
are put into force in place.

What is lost or delayed here never counts as policy: the delay line's drops happen in its
own queue, and rules of a policy are evaluated apart from it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ztprobe.conformance.judgement import Measured
from ztprobe.conformance.udp_probe import PROBES, probe_delays, probe_rates, warm_up
from ztprobe.emulation import backends
from ztprobe.emulation.backends import BACKENDS, choose_backend
from ztprobe.emulation.delay_line.node import NodeQueue, QueuedPod
from ztprobe.emulation.netem import netem_supported, set_netem
from ztprobe.emulation.profile_change import change
from ztprobe.emulation.schedule_follower import ScheduleFollower
from ztprobe.emulation.tbf import set_tbf
from ztprobe.errors import EnforcementError
from ztprobe.kernelnet.drift import DeviceState, DriftMonitor, PodDevice
from ztprobe.kernelnet.netlink import IPRoute, NetlinkError, netlink
from ztprobe.kernelnet.root_qdisc import HANDLE, ROOT, LinkSpot, refuse_foreign, remove_ours
from ztprobe.kernelnet.rtnetlink import Links
from ztprobe.pods.model import Pod, still_there
from ztprobe.profile.model import Profile

__all__ = ("BACKENDS", "Emulator", "take_off")

_ATTEMPTS = 3
_QDISCS = ("netem", "tbf", "nfqueue+tbf")


class Emulator:
    """apply -> measure -> [the workload runs] -> stats -> clear; a context manager that clears.

    :param profile: what to emulate.
    :param pods: the pods whose egress it acts on.
    :param node_netns: the namespace that forwards between them.
    :param state_dir: where the delay line keeps its configuration and counters.
    :param seed: of the delay line's draws; netem draws its own.
    :param backend: one of `BACKENDS` instead of the kernel's best (for comparisons).
    """

    def __init__(
        self,
        profile: Profile,
        pods: Sequence[Pod],
        node_netns: Path,
        state_dir: Path,
        seed: int,
        *,
        backend: str | None = None,
    ) -> None:
        self.profile = profile
        self._first = profile.steps[0]
        self._following: ScheduleFollower | None = None
        self._watch: DriftMonitor | None = None
        self._problem: str | None = None
        self._changing = threading.Lock()  # held while what is in force is changed or looked at
        self._pods = list(pods)
        self.backend = backend or _choose(profile)
        queued = [QueuedPod(name=pod.name, address=pod.address) for pod in self._pods]
        self._queue = (
            NodeQueue(profile, queued, node_netns, state_dir, seed) if "nfqueue" in self.backend else None
        )

    def __enter__(self) -> Emulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    @property
    def delay_line_pid(self) -> int | None:
        """The delay line's process while it runs; None: it has died, or this backend has none."""
        return self._queue.pid if self._queue is not None else None

    def apply(self) -> None:
        """Put the profile in force; neighbours are resolved before.

        :raises EnforcementError: an interface is someone else's, or the kernel refused.
        :raises PreflightError: this kernel cannot emulate the profile.
        """
        warm_up(self._pods)
        if self.backend == "none":
            return
        setter = set_netem if self.backend == "netem" else set_tbf if "tbf" in self.backend else None
        if setter is not None:
            for pod in self._pods:
                with netlink(pod.netns) as ipr:
                    index = _index(ipr, pod)
                    refuse_foreign(ipr, index, pod.name)
                    try:
                        setter(LinkSpot(ipr=ipr, index=index, pod=pod.name), self._first)
                    except NetlinkError as error:
                        raise EnforcementError(
                            f"{pod.name}: the kernel refused {self.backend} for {self.profile.name}: {error}"
                        ) from error
            self._watch = DriftMonitor(self._devices(), _shaping)
        if self._queue is not None:
            self._queue.start()

    def measure(self, server: Pod, clients: Sequence[Pod], *, probes: int = PROBES) -> Measured:
        """Measure what the pods get, with UDP probes both ways; before any policy is in force.

        Of a schedule that is the first step, which stays until `follow`.

        Takes 1.5 s, and 0.9 s more where a rate is asked for. A busy moment of the machine is not a
        wrong profile: what has `Measured.problems` is measured again, up to twice.

        :param probes: per direction; a slow machine wants fewer.
        """
        attempts = 1
        while True:
            measured = Measured(
                directions=probe_delays(server, clients, self._first, probes=probes),
                rates=probe_rates(server, clients, self._first),
                attempts=attempts,
            )
            if attempts == _ATTEMPTS or not measured.problems(self._first):
                return measured
            attempts += 1

    def check(self) -> None:
        """Costs a system call or two as long as nothing has changed, and once a second a small file.

        :raises EnforcementError: what was applied is in force no longer, or other than we have set it.
        """
        with self._changing:
            self._look()
        if self._problem is not None:
            raise EnforcementError(f"{self.profile.name} is in force no longer: {self._problem}")

    def _look(self) -> None:
        for watched in (self._queue, self._watch):
            if watched is not None and self._problem is None:
                self._problem = watched.problem()

    def release(self, pod: Pod) -> None:
        """Take the profile off one pod, which may be gone already; the others keep it.

        A delay line goes on to delay whatever has that pod's address.
        """
        with self._changing:
            self._look()  # our own change would hide somebody else's
            self._pods = [other for other in self._pods if other.name != pod.name]
            if self.backend in _QDISCS:
                _remove_from(pod)
            if self._watch is not None:
                self._watch.close()
                self._watch = DriftMonitor(self._devices(), _shaping)

    def follow(self, tell: Callable[[str], None]) -> None:
        """The workload begins: so does the profile's schedule, if it has one, until `clear`.

        :param tell: is given what went wrong, a line each, from another thread.
        """
        if self._queue is not None:
            with self._changing:
                self._queue.begin()
        if self.profile.schedule is not None:
            self._following = ScheduleFollower(self.profile, self._change, tell)

    def schedule_record(self) -> dict[str, Any] | None:
        """What was asked for and what was in force when (CLOCK_MONOTONIC); None: no schedule was begun."""
        return self._following.record() if self._following is not None else None

    def _change(self, step: Profile) -> tuple[int, int]:
        queues = [self._queue] if self._queue is not None else []
        with self._changing:
            self._look()  # our own change would hide somebody else's
            try:
                return change(step, self.backend, self._devices(), queues)
            finally:
                if self._watch is not None:
                    self._watch.renew()

    def _devices(self) -> list[PodDevice]:
        if self.backend not in _QDISCS:
            return []
        return [PodDevice(pod=pod.name, netns=pod.netns, name=pod.interface) for pod in self._pods]

    def stats(self) -> dict[str, Any]:
        """What the backend counted: the delay line's counters. (Of qdiscs: `ztprobe.agent.observed_qdiscs`.)

        ``cpu_ns`` is the delay line's own CPU time; as the kernel delivers packets inside its
        system calls, that includes the receiving side of the path. Qdiscs cost none that shows.
        """
        counted: dict[str, Any] = {"backend": self.backend, "cpu_ns": 0}
        if self._queue is not None:
            with self._changing:
                line = self._queue.stats()
            counted |= {"delay_line": line, "cpu_ns": line.get("cpu_ns", 0)}
            counted["alive"] = self.delay_line_pid is not None
        return counted

    def clear(self) -> None:
        """Undo everything, whatever state we are in; idempotent."""
        if self._following is not None:
            self._following.stop()
        if self._watch is not None:
            self._watch.close()
        if self._queue is not None:
            self._queue.stop()
        if self.backend in _QDISCS:
            for pod in self._pods:
                _remove_from(pod)


def _choose(profile: Profile) -> str:
    return choose_backend(profile, netem=backends.only_rate(profile) or netem_supported())


def take_off(pods: Sequence[Pod]) -> list[str]:
    """Take what an emulator left on pods that nobody could undo any more. :returns: the pods' names."""
    found = []
    for pod in pods:
        if still_there(pod.netns, pod.netns_inode) and _remove_from(pod):
            found.append(str(pod))
    return found


def _remove_from(pod: Pod) -> bool:
    # A pod that is gone has taken its qdisc along.
    with contextlib.suppress(OSError, NetlinkError), netlink(pod.netns) as ipr:
        return remove_ours(ipr, _index(ipr, pod))
    return False


def _index(ipr: IPRoute, pod: Pod) -> int:
    found = ipr.link_lookup(ifname=pod.interface)
    if not found:
        raise OSError(f"{pod.name} has no interface {pod.interface}")
    return int(found[0])


def _shaping(there: Links, index: int) -> DeviceState:
    # All that stands there: what somebody puts below ours changes it as well.
    found = there.qdiscs(index)
    return {root.kind: repr(found) for parent, root in found if (parent, root.handle) == (ROOT, HANDLE)}
