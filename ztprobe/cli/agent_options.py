"""How a command reaches agents: addresses, certificates, and where a cluster keeps both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ztprobe.errors import PreflightError, UsageError

if TYPE_CHECKING:
    from ztprobe.agent.service.wire import Tls, TlsFiles
    from ztprobe.kubernetes.access import ClusterAccess
    from ztprobe.kubernetes.agents import AgentAddress

__all__ = ("AgentAccess", "agent_access", "agents_options", "tls_files", "tls_options")

_PEM = click.Path(path_type=Path, dir_okay=False)
_UNIX = "unix:"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def tls_options(authority: str) -> Callable[[_Command], _Command]:
    """Certificate, key and authority.

    :param authority: what the option for the last one is called.
    """

    def options(command: _Command) -> _Command:
        for option in (
            click.option(authority, "authority", type=_PEM, metavar="FILE", help="Whose certificates count."),
            click.option("--key", type=_PEM, metavar="FILE", help="The certificate's private key (PEM)."),
            click.option("--cert", type=_PEM, metavar="FILE", help="This side's certificate (PEM)."),
        ):
            command = option(command)
        return command

    return options


def tls_files(cert: Path | None, key: Path | None, authority: Path | None, name: str) -> TlsFiles | None:
    """What `tls_options` gave; None: nothing.

    :param name: of the option for the authority.
    :raises UsageError: some of them are missing.
    """
    from ztprobe.agent.service.wire import TlsFiles

    if cert is None and key is None and authority is None:
        return None
    if cert is None or key is None or authority is None:
        raise UsageError(f"--cert, --key and {name} go together: one of them is missing")
    return TlsFiles(certificate=cert, key=key, authority=authority)


def agents_options(command: _Command) -> _Command:
    """Through which agents, and how they let one in."""
    for option in (
        tls_options("--ca"),
        click.option(
            "--agents-in",
            metavar="NAMESPACE",
            help="Where the agents and the collector's certificate are.  [default: ztprobe]",
        ),
        click.option(
            "--agent",
            "addresses",
            metavar="ADDRESS",
            multiple=True,
            help="Through this agent (HOST:PORT); may be repeated.",
        ),
        click.option(
            "--agents",
            "through",
            is_flag=True,
            help="Through the cluster's agents, on every node, instead of as root on one.",
        ),
    ):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True)
class AgentAccess:
    """Nothing is asked before its methods are called."""

    cluster: ClusterAccess
    addresses: tuple[str, ...]  # empty: of the agents that the cluster runs
    files: TlsFiles | None  # None: the cluster's Secret
    namespace: str

    def agents(self) -> list[AgentAddress]:
        """:raises PreflightError: the cluster has none, or does not say."""
        from ztprobe.kubernetes.agents import AgentAddress, agents_of

        if self.addresses:
            return [AgentAddress(node="", address=address) for address in self.addresses]
        return agents_of(self.cluster.api(), self.namespace)

    def tls(self) -> Tls:
        """:raises PreflightError: the cluster does not give the collector's certificate."""
        from ztprobe.agent.service.wire import TlsContents
        from ztprobe.kubernetes.agents import collector_certificate

        if self.files is not None:
            return self.files
        try:
            certificate, key, authority = collector_certificate(self.cluster.api(), self.namespace)
        except PreflightError as error:
            raise PreflightError(f"{error}; or give --cert, --key and --ca") from error
        return TlsContents(certificate=certificate, key=key, authority=authority)


def agent_access(
    cluster: ClusterAccess | None,
    through: bool,
    addresses: tuple[str, ...],
    namespace: str | None,
    files: TlsFiles | None,
) -> AgentAccess | None:
    """What `agents_options` gave; None: no agent is to be asked.

    :raises UsageError: options that do not go together.
    """
    from ztprobe.kubernetes.agents import AGENTS_NAMESPACE

    if not through and not addresses:
        for option, given in {"--agents-in": namespace, "--cert": files}.items():
            if given is not None:
                raise UsageError(f"{option}: is about agents: give --agents, or --agent ADDRESS")
        return None
    if cluster is None:
        raise UsageError("--agents and --agent are about a cluster's pods: add --runtime kubernetes")
    if cluster.node is not None:
        raise UsageError("--node says which node this is; agents know theirs: leave it out")
    for address in addresses:
        port = address.rpartition(":")[2]
        if not address.startswith(_UNIX) and not (port.isdigit() and int(port) < 1 << 16):
            raise UsageError(f"--agent {address}: expected HOST:PORT")
    return AgentAccess(
        cluster=cluster, addresses=addresses, files=files, namespace=namespace or AGENTS_NAMESPACE
    )
