"""Which cluster, namespace and node a command is about, as it was typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztprobe.kubernetes.api import Api

__all__ = ("ClusterAccess",)


@dataclass(frozen=True, kw_only=True)
class ClusterAccess:
    """Nothing is asked before `api` is called for."""

    namespace: str
    node: str | None = None  # this node's name there; None: $NODE_NAME, or what is seen
    context: str | None = None  # of the kubeconfig; None: its current one
    kubeconfig: str | None = None  # None: $KUBECONFIG, ~/.kube/config or a service account

    def api(self) -> Api:
        """:raises PreflightError: nothing says which cluster, or how to log in."""
        from ztprobe.kubernetes.api import Api

        return Api(self.kubeconfig, self.context)
