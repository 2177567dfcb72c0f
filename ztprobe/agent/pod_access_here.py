"""A run's access to pods of this machine: `ztprobe.agent.pod_access.PodAccess` by its kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence

from ztprobe.agent.pod_access import Address, Arrival, ContainerProcess, PathLoad, PathProbes
from ztprobe.conformance import udp_probe
from ztprobe.kernelnet.sockets import tcp_sockets
from ztprobe.pods.cgroup import PodProcesses
from ztprobe.pods.model import Pod
from ztprobe.runtime.attempts import PodNetworksHere
from ztprobe.runtime.cluster import gate
from ztprobe.runtime.local import cgroups, dns, network, sidecar, transport

__all__ = ("PodAccessHere",)


class PodAccessHere(PodNetworksHere):
    """`PodAccess` to this machine's pods."""

    def __init__(self) -> None:
        self._processes = PodProcesses()
        self._open = contextlib.ExitStack()
        self._ends: dict[str, udp_probe.ProbeEnd] = {}

    def containers(self, uids: Sequence[str], named: Collection[str]) -> list[ContainerProcess]:
        """See `PodAccess`."""
        return [
            ContainerProcess(
                pid=pid,
                uid=uid,
                container=container,
                is_hold=container not in named and gate.is_hold(pid),
            )
            for pid, uid, container in self._processes.look({uid: uid for uid in uids})
        ]

    def open_gate(self, pids: Sequence[int], name: str) -> float | None:
        """See `PodAccess`."""
        return gate.open_gate(pids, name)

    def resolvers(self, pids: Sequence[int]) -> list[str]:
        """See `PodAccess`."""
        return next(filter(None, map(dns.nameservers, pids)), [])

    def sysctls(self, pod: Pod) -> dict[str, str | None]:
        """See `PodAccess`."""
        return transport.recorded(pod.netns)

    def cgroup_version(self) -> str:
        """See `PodAccess`."""
        return cgroups.detect().version

    def one_by_one(self, pod: Pod) -> None:
        """See `PodAccess`."""
        network.one_by_one(pod.netns, pod.interface)

    def listens(self, pids: Sequence[int], port: int) -> bool:
        """See `PodAccess`."""
        return any(one.listens and one.local_port == port for pid in pids for one in tcp_sockets(pid))

    def sidecar_ready(self, pod: Pod) -> bool:
        """See `PodAccess`."""
        return sidecar.backends_ready(pod.netns)

    def open_ends(self, pods: Sequence[Pod]) -> list[Address]:
        """See `PodAccess`."""
        self.close_ends()
        ends = self._open.enter_context(udp_probe.opened_ends(pods))
        self._ends = {end.name: end for end in ends}
        return [end.address for end in ends]

    def probe_path(self, share: PathProbes) -> dict[int, list[Arrival]]:
        """See `PodAccess`."""
        ends = self._all_ends(share.ends, share.own)
        with udp_probe.undisturbed():
            udp_probe.run_probes(
                ends, share.flows, share.profile, share.probes, share.seconds, late_s=share.late_s
            )
        return _arrivals(ends)

    def load_path(self, share: PathLoad) -> dict[int, list[Arrival]]:
        """See `PodAccess`."""
        ends = self._all_ends(share.ends, share.own)
        with udp_probe.undisturbed():
            senders = None if share.senders is None else [one for one in share.senders if one in share.own]
            udp_probe.run_load(ends, share.profile, senders, late_s=share.late_s)
        return _arrivals(ends)

    def _all_ends(self, addresses: Sequence[Address], own: Mapping[int, str]) -> list[udp_probe.ProbeEnd]:
        ends = [
            self._ends[own[number]] if number in own else udp_probe.ProbeEnd("", None, address)
            for number, address in enumerate(addresses)
        ]
        for end in ends:
            end.drain()
            end.arrived.clear()
        return ends

    def close_ends(self) -> None:
        """See `PodAccess`."""
        self._open.close()
        self._ends = {}


def _arrivals(ends: Sequence[udp_probe.ProbeEnd]) -> dict[int, list[Arrival]]:
    return {number: list(end.arrived) for number, end in enumerate(ends) if end.socket is not None}
