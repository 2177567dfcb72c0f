"""Where on which cluster a run is to be, as it was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztprobe.kubernetes.api import Api
    from ztprobe.runtime.cluster.agent_nodes import RunAgents

__all__ = ("ClusterPlace",)


@dataclass(frozen=True, kw_only=True)
class ClusterPlace:
    """Nothing is asked before `api` is called for."""

    namespace: str | None = None  # one that is there; None: each run makes one of its own
    node: str | None = None  # this node's name, and where all pods are put; None: where the scheduler likes
    context: str | None = None  # of the kubeconfig; None: its current one
    kubeconfig: str | None = None  # None: $KUBECONFIG, ~/.kube/config or a service account
    image: str | None = None  # of the workload; None: what the manifests say
    agents: RunAgents | None = None  # that act on its pods' nodes; None: all pods are on this one

    def api(self) -> Api:
        """:raises PreflightError: nothing says which cluster, or how to log in."""
        from ztprobe.kubernetes.api import Api

        return Api(self.kubeconfig, self.context)

    def undeploy(self, run: str) -> str:
        """The command that removes a run from there."""
        words = ["ztprobe undeploy", run]
        for option, value in (
            *(("-n", self.namespace), ("--context", self.context), ("--kubeconfig", self.kubeconfig)),
        ):
            words += [option, value] if value is not None else []
        return " ".join(words)
