"""Show that what sec3 adds on a cluster is in force: Pod Security, and accounts that may do next to nothing.

The API server decides both: it admits a pod without keeping it (a dry run), and it says what an account may
do (SubjectAccessReview). The run's own pods were let in where the privileged one is to be refused, and the
accounts may read their settings where they are not to list pods, so neither refusal stands for a namespace
in which nothing works.
"""

from __future__ import annotations

from collections.abc import Iterable

from ztprobe.errors import ZtprobeError
from ztprobe.kubernetes.changes import Changes
from ztprobe.runtime.interface import Proof
from ztprobe.runtime.local.workload import SETTINGS

__all__ = ("prove_hardening",)

_POD_SECURITY = "violates PodSecurity"  # what that admission plugin says, and no other
_NAME = "ztprobe-privileged"
_ALLOWED, _NOT_ALLOWED = "allowed", "not allowed"


def prove_hardening(changes: Changes, namespace: str, accounts: Iterable[str], image: str) -> list[Proof]:
    """Ask for what is to be refused, and for what is to be let through.

    :param accounts: the pods' service accounts.
    :param image: of the pod that is to be refused.
    """
    proofs = [_privileged(changes, namespace, image)]
    for account in sorted(set(accounts)):
        proofs += [
            _right(changes, namespace, account, ("list", "pods", ""), _NOT_ALLOWED),
            _right(changes, namespace, account, ("get", "configmaps", SETTINGS), _ALLOWED),
        ]
    return proofs


def _privileged(changes: Changes, namespace: str, image: str) -> Proof:
    container = {"name": "tried", "image": image, "securityContext": {"privileged": True}}
    said = changes.refusal(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": _NAME, "namespace": namespace},
            "spec": {"containers": [container], "restartPolicy": "Never"},
        }
    )
    hint = (
        f"admitted: is the namespace labelled (kubectl label namespace {namespace}"
        " pod-security.kubernetes.io/enforce=restricted)?"
    )
    return Proof(
        name=f"forbidden: a privileged pod in {namespace}",
        expected="refused by Pod Security",
        observed=said or hint,
        passed=_POD_SECURITY in said and "privileged" in said.partition(_POD_SECURITY)[2],
    )


def _right(
    changes: Changes, namespace: str, account: str, wanted: tuple[str, str, str], expected: str
) -> Proof:
    verb, resource, name = wanted
    try:
        observed = _ALLOWED if changes.may(account, namespace, verb, resource, name) else _NOT_ALLOWED
    except ZtprobeError as error:
        observed = str(error)
    what = f"{resource}/{name}" if name else resource
    word = "forbidden" if expected == _NOT_ALLOWED else "allowed"
    return Proof(
        name=f"{word}: ServiceAccount {account} -> {verb} {what}",
        expected=expected,
        observed=observed,
        passed=observed == expected,
    )
