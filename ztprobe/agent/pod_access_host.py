"""The agent's side of a run's access to its pods (`ztprobe.agent.pod_access_calls`).

It acts on pods that the agent has placed itself, by what the API says of them, and on no others.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ztprobe.agent.pod_access import Arrival, PathLoad, PathProbes
from ztprobe.agent.pod_access_here import PodAccessHere
from ztprobe.errors import EnforcementError, UsageError
from ztprobe.pods.cgroup import pod_uid
from ztprobe.pods.model import Pod
from ztprobe.profile.model import profile_from_dict
from ztprobe.runtime.attempts import Stream

__all__ = ("POD_ACCESS_CALLS", "PodAccessHost")

_MOST_STREAMS = 64
_LONGEST_S = 60.0


class PodAccessHost:
    """The agent's side.

    :param placed: pods by name, as this node's kernel has them.
    """

    def __init__(self, placed: Mapping[str, Pod]) -> None:
        self._placed = placed
        self.access = PodAccessHere()
        self._streams: dict[int, Stream] = {}
        self._number = 0
        self._listening: dict[tuple[str, int], tuple[contextlib.ExitStack, Callable[[], None]]] = {}

    def pod(self, name: str) -> Pod:
        """:raises UsageError: no such pod was placed."""
        if name not in self._placed:
            raise UsageError(f"{name}: the agent has found no such pod on its node")
        return self._placed[name]

    def ours(self, pids: Sequence[int]) -> list[int]:
        """Those of the processes that are in pods that were placed."""
        uids, found = {pod.uid for pod in self._placed.values()}, []
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended
                if pod_uid(Path(f"/proc/{int(pid)}/cgroup").read_text()) in uids:
                    found.append(int(pid))
        return found

    def dial(self, name: str, address: str, port: int, timeout_s: float) -> tuple[str, int | None]:
        """See `PodNetworks`; a connection goes by a number here."""
        if len(self._streams) >= _MOST_STREAMS:
            raise UsageError(f"{_MOST_STREAMS} connections are open already")
        said, stream = self.access.dial(self.pod(name), address, port, min(timeout_s, _LONGEST_S))
        if stream is None:
            return said, None
        self._number += 1
        self._streams[self._number] = stream
        return said, self._number

    def exchange(self, number: int, data: bytes, timeout_s: float) -> tuple[bytes, str]:
        """See `Stream`."""
        return self._streams[number].exchange(data, min(timeout_s, _LONGEST_S))

    def hang_up(self, number: int) -> None:
        """End a connection."""
        self._streams.pop(number).close()

    def listen(self, name: str, port: int) -> None:
        """Listen on a pod's port, or end what has connected there so far."""
        if (name, port) in self._listening:
            self._listening[name, port][1]()
            return
        if len(self._listening) >= _MOST_STREAMS:
            raise UsageError(f"{_MOST_STREAMS} ports are listened on already")
        opened = contextlib.ExitStack()
        try:
            take = opened.enter_context(self.access.listening(self.pod(name), port))
        except OSError as error:
            raise EnforcementError(f"{name}: port {port} cannot be listened on: {error.strerror}") from error
        self._listening[name, port] = opened, take

    def stop_listening(self, name: str, port: int) -> None:
        """Idempotent."""
        if (found := self._listening.pop((name, port), None)) is not None:
            found[0].close()

    def ask(
        self, name: str, address: str, port: int, datagram: bytes, timeout_s: float
    ) -> bytes | str | None:
        """See `PodNetworks`; what the kernel says is a string."""
        try:
            return self.access.ask(self.pod(name), address, port, datagram, min(timeout_s, _LONGEST_S))
        except OSError as error:
            return error.strerror or str(error)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _exchanged(host: PodAccessHost, said: Mapping[str, Any]) -> list[str]:
    received, why = host.exchange(said["stream"], base64.b64decode(said["data"]), said["timeout_s"])
    return [_text(received), why]


def _asked(host: PodAccessHost, said: Mapping[str, Any]) -> dict[str, str | None]:
    datagram = base64.b64decode(said["data"])
    answer = host.ask(said["pod"], said["address"], said["port"], datagram, said["timeout_s"])
    if isinstance(answer, str):
        return {"problem": answer}
    return {"data": None if answer is None else _text(answer)}


def _share(said: Mapping[str, Any]) -> dict[str, Any]:
    """What `PathProbes` and `PathLoad` have in common."""
    return {
        "ends": tuple((str(address), int(port)) for address, port in said["ends"]),
        "own": {int(number): str(pod) for number, pod in said["own"].items()},
        "profile": profile_from_dict(said["profile"]),
        "late_s": min(float(said["late_s"]), _LONGEST_S),
    }


def _probed(host: PodAccessHost, said: Mapping[str, Any]) -> dict[int, list[Arrival]]:
    flows = tuple((int(sender), int(receiver)) for sender, receiver in said["flows"])
    seconds = min(float(said["seconds"]), _LONGEST_S)
    share = PathProbes(**_share(said), flows=flows, probes=int(said["probes"]), seconds=seconds)
    return host.access.probe_path(share)


def _loaded(host: PodAccessHost, said: Mapping[str, Any]) -> dict[int, list[Arrival]]:
    senders = said.get("senders")
    share = PathLoad(**_share(said), senders=None if senders is None else tuple(map(int, senders)))
    return host.access.load_path(share)


POD_ACCESS_CALLS: Mapping[str, Callable[[PodAccessHost, Mapping[str, Any]], Any]] = {
    "containers": lambda host, said: [
        dataclasses.asdict(one) for one in host.access.containers(said["uids"], frozenset(said["named"]))
    ],
    "open_gate": lambda host, said: host.access.open_gate(host.ours(said["pids"]), said["name"]),
    "resolvers": lambda host, said: host.access.resolvers(host.ours(said["pids"])),
    "sysctls": lambda host, said: host.access.sysctls(host.pod(said["pod"])),
    "cgroup_version": lambda host, _: host.access.cgroup_version(),
    "one_by_one": lambda host, said: host.access.one_by_one(host.pod(said["pod"])),
    "listens": lambda host, said: host.access.listens(host.ours(said["pids"]), said["port"]),
    "sidecar_ready": lambda host, said: host.access.sidecar_ready(host.pod(said["pod"])),
    "dial": lambda host, said: host.dial(said["pod"], said["address"], said["port"], said["timeout_s"]),
    "exchange": _exchanged,
    "hang_up": lambda host, said: host.hang_up(said["stream"]),
    "ask": _asked,
    "listen": lambda host, said: host.listen(said["pod"], said["port"]),
    "stop_listening": lambda host, said: host.stop_listening(said["pod"], said["port"]),
    "open_ends": lambda host, said: host.access.open_ends([host.pod(name) for name in said["pods"]]),
    "probe_path": _probed,
    "load_path": _loaded,
    "close_ends": lambda host, _: host.access.close_ends(),
}
