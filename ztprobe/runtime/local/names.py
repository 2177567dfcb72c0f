"""The name service of one run: its pod's container, and what it answers, which may change."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ztprobe.pods.model import Pod
from ztprobe.rundir import files
from ztprobe.runtime.local import dns
from ztprobe.runtime.local.containers import Containers
from ztprobe.runtime.local.network import PodAddress
from ztprobe.runtime.local.workload import ContainerPlan, Mount, Workload

__all__ = ("NameService",)

_CONTAINER, _FILE = "dnsmasq", "names"
_DIRECTORY = PurePosixPath("/run/dns")


class NameService:
    """Answers for the services' names."""

    def __init__(self, pod: Pod, containers: Containers) -> None:
        self._pod = pod
        self._containers = containers

    def start(self, node: Path, workload: Workload, placed: Mapping[str, PodAddress]) -> None:
        """Start it with the workload's names, and return once it answers.

        :param node: the namespace from which it is asked.
        :raises WorkloadError: it does not answer.
        """
        service = workload.service
        names = {service.domain_name: [placed[p.name].address for p in workload.pods if service.selects(p)]}
        names |= {name: [placed[edge].address] for name, edge in workload.edge_names.items()}
        container = ContainerPlan(
            name=_CONTAINER,
            command=dns.command(self._pod.address, _DIRECTORY / _FILE),
            env={},
            sidecar=False,
            mounts=(Mount(path=_DIRECTORY, files={_FILE: _records(names)}),),
            one_log=True,
        )
        self._containers.launch([(self._pod, container)])
        dns.wait_until_answering(node, self._pod.address, service.domain_name)

    def answer(self, names: Mapping[str, Sequence[str]]) -> None:
        """From now on answer for these names (each with its IPv4 addresses), and for no others."""
        file = self._containers.volume(self._pod, _DIRECTORY) / _FILE
        files.write_whole(file, _records(names).encode())
        os.kill(self._containers.pid(self._pod.name, _CONTAINER), signal.SIGHUP)


def _records(names: Mapping[str, Sequence[str]]) -> str:
    return "".join(f"{address}\t{name}\n" for name, addresses in names.items() for address in addresses)
