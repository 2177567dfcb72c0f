"""A node's view of its pods asked for from another process: both sides of `NodeView` as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ztprobe.agent.endpoints import OwnedSocket
from ztprobe.agent.interface import LoadPart, NodeFacts, NodeView, PlacedPods, PodProcess
from ztprobe.agent.stall_snapshot import ProcessLook, StallLook
from ztprobe.kernelnet.sockets import TcpSocket
from ztprobe.kernelnet.tcp_ends import TcpEnd
from ztprobe.pods.model import Pod
from ztprobe.process.identity import MachineProcess

__all__ = ("NODE_VIEW_CALLS", "NodeViewCaller")


def _placed(found: PlacedPods) -> dict[str, Any]:
    return {"pods": [pod.as_dict() for pod in found.pods], "unseen": found.unseen, "places": found.places}


NODE_VIEW_CALLS: Mapping[str, Callable[[NodeView, Mapping[str, Any]], Any]] = {
    "facts": lambda view, _: dataclasses.asdict(view.facts()),
    "clock": lambda view, _: view.clock(),
    "place": lambda view, said: _placed(view.place([Pod.from_dict(pod) for pod in said["pods"]])),
    "processes": lambda view, said: [dataclasses.asdict(one) for one in view.processes(said["uids"])],
    "sockets": lambda view, _: [dataclasses.asdict(one) for one in view.sockets()],
    "stall_look": lambda view, _: dataclasses.asdict(view.stall_look()),
    "record_load": lambda view, said: view.record_load([MachineProcess(**one) for one in said["ours"]]),
    "load": lambda view, said: dataclasses.asdict(view.load(said["after"], last=said["last"])),
    "busiest": lambda view, _: view.busiest(),
}


class NodeViewCaller:
    """`ztprobe.agent.interface.NodeView` by calls that something else carries."""

    def _ask(self, call: str, **arguments: Any) -> Any:
        """Make a call. :raises ZtprobeError: whatever it raised, or it could not be made."""
        raise NotImplementedError

    def facts(self) -> NodeFacts:
        """See `NodeView`."""
        return NodeFacts(**self._ask("facts"))

    def clock(self) -> dict[str, int]:
        """See `NodeView`."""
        return dict(self._ask("clock"))

    def place(self, pods: Sequence[Pod]) -> PlacedPods:
        """See `NodeView`."""
        said = self._ask("place", pods=[pod.as_dict() for pod in pods])
        return PlacedPods(**said | {"pods": [Pod.from_dict(pod) for pod in said["pods"]]})

    def processes(self, uids: Sequence[str]) -> list[PodProcess]:
        """See `NodeView`."""
        return [PodProcess(**one) for one in self._ask("processes", uids=list(uids))]

    def sockets(self) -> list[OwnedSocket]:
        """See `NodeView`."""
        return [
            OwnedSocket(one["pod"], one["container"], TcpSocket(**one["socket"]))
            for one in self._ask("sockets")
        ]

    def stall_look(self) -> StallLook:
        """See `NodeView`."""
        said = self._ask("stall_look")
        said["ends"] = {pod: tuple(TcpEnd(**one) for one in ends) for pod, ends in said["ends"].items()}
        said["processes"] = {
            pod: {int(pid): ProcessLook(**one) for pid, one in running.items()}  # JSON's keys are text
            for pod, running in said["processes"].items()
        }
        return StallLook(**said)

    def record_load(self, ours: Sequence[MachineProcess]) -> str:
        """See `NodeView`."""
        return str(self._ask("record_load", ours=[dataclasses.asdict(one) for one in ours]))

    def load(self, after: int, *, last: bool = False) -> LoadPart:
        """See `NodeView`."""
        return LoadPart(**self._ask("load", after=after, last=last))

    def busiest(self) -> str | None:
        """See `NodeView`."""
        found = self._ask("busiest")
        return None if found is None else str(found)
