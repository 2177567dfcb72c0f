"""The same question to each of a cluster's agents at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ztprobe.errors import ZtprobeError

if TYPE_CHECKING:
    from ztprobe.agent.service.client import Connection
    from ztprobe.agent.service.wire import Tls
    from ztprobe.cli.agent_options import AgentAccess
    from ztprobe.kubernetes.agents import AgentAddress

__all__ = ("ask_agents",)

_PATIENCE_S = 5.0
_AT_ONCE = 16


def ask_agents(
    access: AgentAccess, question: Callable[[Connection, dict[str, Any]], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What each answers, by its node's name; `{"problem": LINE}` of one that does not.

    :param question: asks more of an agent whose status is known.
    :raises PreflightError: the cluster has no agents, or does not let one in to them.
    """
    agents, tls = access.agents(), access.tls()
    with ThreadPoolExecutor(min(_AT_ONCE, len(agents)), "agents") as threads:
        return dict(threads.map(lambda agent: _asked(agent, tls, question), agents))


def _asked(
    agent: AgentAddress, tls: Tls, question: Callable[[Connection, dict[str, Any]], dict[str, Any]]
) -> tuple[str, dict[str, Any]]:
    from ztprobe.agent.service.client import Connection

    connection = Connection(agent.address, tls, patience_s=_PATIENCE_S)
    try:
        status = connection.status()
        return agent.node or status["node"] or agent.address, question(connection, status)
    except ZtprobeError as error:
        return agent.node or agent.address, {"problem": str(error)}
    finally:
        connection.close()
