"""Whether the manifests hold what the security level is to have. Pure.

What a level expects comes from the level and never from the manifests: a file that was edited by
mistake must not turn sec1 into sec0 in silence. This is what can be said before anything is made;
`ztprobe.runtime.local.proof` shows afterwards that the controls work.
"""

from __future__ import annotations

from ztprobe.errors import EnforcementError
from ztprobe.policy import Ruleset
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local.workload import PodPlan, Workload

__all__ = ("check_level",)


def check_level(options: WorkloadOptions, workload: Workload, rules: Ruleset) -> None:
    """Compare the manifests with the level that is to be run.

    :raises EnforcementError: a control of the level is missing, or one is there that it does not have.
    """
    problems = [*_policy_problems(options, workload, rules), *_tls_problems(options, workload)]
    if problems:
        raise EnforcementError(f"the manifests are not sec{options.level}: {'; '.join(problems)}")


def _policy_problems(options: WorkloadOptions, workload: Workload, rules: Ruleset) -> list[str]:
    names = [str(policy["metadata"]["name"]) for policy in workload.policies]
    if not options.network_policy:
        return [f"it has no NetworkPolicy, and they have {_listed(names)}"] if names else []
    if not names:
        return ["it has NetworkPolicies, and they have none"]
    return [
        f"no NetworkPolicy isolates {pod.name} for {direction} (they have {_listed(names)})"
        for pod, direction in (
            (workload.server, "ingress"),
            *((edge, direction) for edge in workload.edges[:1] for direction in ("ingress", "egress")),
            *((client, "egress") for client in workload.clients[:1]),
        )
        if pod.name not in rules.isolated[direction]
    ]


def _tls_problems(options: WorkloadOptions, workload: Workload) -> list[str]:
    pods = (workload.server, *workload.edges[:1], *workload.clients[:1])
    if not options.mutual_tls:
        with_proxy = [pod.name for pod in pods if any(c.sidecar for c in pod.containers)]
        return [f"it has no sidecars, and {_listed(with_proxy)} have one"] if with_proxy else []
    return [
        f"it has a sidecar with a certificate in every pod, and {pod.name} has none"
        for pod in pods
        if not _has_proxy(pod)
    ]


def _has_proxy(pod: PodPlan) -> bool:
    return any(c.sidecar and any(m.secret is not None for m in c.mounts) for c in pod.containers)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
