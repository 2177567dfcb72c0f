"""A run's access to its pods asked for from another process: the asking side of `PodAccess` as JSON.

Bytes that go in and out of pods' networks are carried as they are: what is tried, and with whose key, stays
with whoever asks. The answering side is `ztprobe.agent.pod_access_host`.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from ztprobe.agent.pod_access import Address, Arrival, ContainerProcess, PathLoad, PathProbes
from ztprobe.pods.model import Pod
from ztprobe.runtime.attempts import Stream

__all__ = ("POD_ACCESS", "PodAccessCaller")

# The calls' names.
POD_ACCESS = frozenset(
    (
        *("containers", "open_gate", "resolvers", "sysctls", "cgroup_version", "one_by_one", "listens"),
        *("sidecar_ready", "dial", "exchange", "hang_up", "ask", "listen", "stop_listening"),
        *("open_ends", "probe_path", "load_path", "close_ends"),
    )
)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


class PodAccessCaller:
    """`ztprobe.agent.pod_access.PodAccess` by calls that something else carries."""

    def _ask(self, call: str, **arguments: Any) -> Any:
        """Make a call. :raises ZtprobeError: whatever it raised, or it could not be made."""
        raise NotImplementedError

    def containers(self, uids: Sequence[str], named: Collection[str]) -> list[ContainerProcess]:
        """See `PodAccess`."""
        found = self._ask("containers", uids=list(uids), named=sorted(named))
        return [ContainerProcess(**one) for one in found]

    def open_gate(self, pids: Sequence[int], name: str) -> float | None:
        """See `PodAccess`."""
        held_s = self._ask("open_gate", pids=list(pids), name=name)
        return None if held_s is None else float(held_s)

    def resolvers(self, pids: Sequence[int]) -> list[str]:
        """See `PodAccess`."""
        return list(self._ask("resolvers", pids=list(pids)))

    def sysctls(self, pod: Pod) -> dict[str, str | None]:
        """See `PodAccess`."""
        return dict(self._ask("sysctls", pod=pod.name))

    def cgroup_version(self) -> str:
        """See `PodAccess`."""
        return str(self._ask("cgroup_version"))

    def one_by_one(self, pod: Pod) -> None:
        """See `PodAccess`."""
        self._ask("one_by_one", pod=pod.name)

    def listens(self, pids: Sequence[int], port: int) -> bool:
        """See `PodAccess`."""
        return bool(self._ask("listens", pids=list(pids), port=port))

    def sidecar_ready(self, pod: Pod) -> bool:
        """See `PodAccess`."""
        return bool(self._ask("sidecar_ready", pod=pod.name))

    def dial(self, pod: Pod, address: str, port: int, timeout_s: float) -> tuple[str, Stream | None]:
        """See `PodNetworks`."""
        said, number = self._ask("dial", pod=pod.name, address=address, port=port, timeout_s=timeout_s)
        return str(said), None if number is None else _CarriedStream(self, int(number))

    def ask(self, pod: Pod, address: str, port: int, datagram: bytes, timeout_s: float) -> bytes | None:
        """See `PodNetworks`."""
        said = self._ask(
            "ask", pod=pod.name, address=address, port=port, data=_text(datagram), timeout_s=timeout_s
        )
        if "problem" in said:
            raise OSError(said["problem"])
        return None if said["data"] is None else base64.b64decode(said["data"])

    @contextlib.contextmanager
    def listening(self, pod: Pod, port: int) -> Iterator[Callable[[], None]]:
        """See `PodNetworks`."""
        self._ask("listen", pod=pod.name, port=port)
        try:
            yield lambda: self._ask("listen", pod=pod.name, port=port)
        finally:
            self._ask("stop_listening", pod=pod.name, port=port)

    def open_ends(self, pods: Sequence[Pod]) -> list[Address]:
        """See `PodAccess`."""
        found = self._ask("open_ends", pods=[pod.name for pod in pods])
        return [(str(address), int(port)) for address, port in found]

    def probe_path(self, share: PathProbes) -> dict[int, list[Arrival]]:
        """See `PodAccess`."""
        return _arrivals(self._ask("probe_path", **_said(share)))

    def load_path(self, share: PathLoad) -> dict[int, list[Arrival]]:
        """See `PodAccess`."""
        return _arrivals(self._ask("load_path", **_said(share)))

    def close_ends(self) -> None:
        """See `PodAccess`."""
        self._ask("close_ends")

    def exchanged(self, number: int, data: bytes, timeout_s: float) -> tuple[bytes, str]:
        """Of a connection that goes by a number."""
        received, why = self._ask("exchange", stream=number, data=_text(data), timeout_s=timeout_s)
        return base64.b64decode(received), str(why)

    def hang_up(self, number: int) -> None:
        """End one."""
        self._ask("hang_up", stream=number)


class _CarriedStream:
    """See `Stream`."""

    def __init__(self, caller: PodAccessCaller, number: int) -> None:
        self._caller, self._number = caller, number

    def exchange(self, data: bytes, timeout_s: float) -> tuple[bytes, str]:
        """See `Stream`."""
        return self._caller.exchanged(self._number, data, timeout_s)

    def close(self) -> None:
        """See `Stream`."""
        self._caller.hang_up(self._number)


def _said(share: PathProbes | PathLoad) -> dict[str, Any]:
    return {**dataclasses.asdict(share), "own": {str(number): pod for number, pod in share.own.items()}}


def _arrivals(said: Mapping[str, Sequence[Sequence[int]]]) -> dict[int, list[Arrival]]:
    return {
        int(number): [(int(sender), int(sent), int(got)) for sender, sent, got in arrived]
        for number, arrived in said.items()
    }
