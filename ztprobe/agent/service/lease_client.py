"""An agent asked for its node's leases from elsewhere, and for what pods get of them.

Beside whoever has the agent watch: leases hinder no trace, and no trace hinders them.
"""

from __future__ import annotations

from typing import Any

from ztprobe.agent.lease_calls import LeaseCaller
from ztprobe.agent.node_view_calls import NodeViewCaller
from ztprobe.agent.pod_access_calls import PodAccessCaller
from ztprobe.agent.service.client import Connection, SessionCaller
from ztprobe.errors import ZtprobeError

__all__ = ("LeaseClient", "at_node")


class LeaseClient(SessionCaller, LeaseCaller, NodeViewCaller, PodAccessCaller):
    """`ztprobe.agent.interface.Leases` of a node; a context manager. Errors say which node's it is.

    What it may ask for besides is `ztprobe.agent.service.session.BESIDE_CALLS`.

    :param node: its name.
    :raises ZtprobeError: the agent does not answer, or too many others ask.
    """

    def __init__(self, node: str, connection: Connection) -> None:
        self.node = node
        try:
            # An older agent gives a session that watches nothing, if nobody has it watch.
            super().__init__(connection, {"run": "leases", "probes": False, "leases": True})
        except ZtprobeError as error:
            raise at_node(node, error) from error

    def __enter__(self) -> LeaseClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def _ask(self, call: str, **arguments: Any) -> Any:
        try:
            return super()._ask(call, **arguments)
        except ZtprobeError as error:
            raise at_node(self.node, error) from error


def at_node(node: str, error: ZtprobeError) -> ZtprobeError:
    """The same error with its node's name before it, once."""
    name = f"node {node}: "
    told = type(error)(name + str(error).removeprefix(name))
    told.exit_code = error.exit_code
    return told
