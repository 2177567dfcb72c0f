"""What is to be observed through agents, and how they are reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ztprobe.agent.service.wire import Tls
from ztprobe.errors import UsageError
from ztprobe.experiment.request import STALL_AFTER_S
from ztprobe.kubernetes.agents import AgentAddress
from ztprobe.kubernetes.api import Api
from ztprobe.pods.targets import Target, parse_target

__all__ = ("NodesRequest", "pod_targets")


@dataclass(frozen=True, kw_only=True)
class NodesRequest:
    """Every field has been checked."""

    api: Api
    namespace: str
    server: Target
    clients: tuple[Target, ...]  # empty: whoever is connected to the server
    agents: tuple[AgentAddress, ...]
    tls: Tls | None  # None: agents listen on sockets of this machine
    for_s: float | None = None  # how long; None: until Ctrl-C, the rounds or the server's end
    rounds: int | None = None  # how many ends of rounds
    stall_after_s: float = STALL_AFTER_S  # without progress


def pod_targets(server: str, clients: Sequence[str]) -> tuple[Target, tuple[Target, ...]]:
    """Read them. :raises UsageError: one is no labels, which are all that agents can be asked about."""
    found = (parse_target(server, "server"), *(parse_target(text, "client") for text in clients))
    for target in found:
        if target.kind != "pods":
            raise UsageError(
                f"{target.option}: through agents only labels of pods name somebody, such as app=fl-server"
            )
    return found[0], found[1:]
