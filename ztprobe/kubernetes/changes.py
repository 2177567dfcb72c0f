"""Objects of a cluster applied and removed: server-side apply by the library's dynamic client.

Whoever applies owns the fields that the documents have, and no others. Everything carries its run's label,
by which it is found again and removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ztprobe.errors import PreflightError
from ztprobe.kubernetes.api import Api, NotThere, Object
from ztprobe.rundir.temporary import scratch

__all__ = ("Changes", "changing", "named")

_MANAGER = "ztprobe"
_NOTHING_IS_MADE = "All"  # admission is asked, and what it lets through is not kept
# What runs are made of, in the order in which they are removed: pods before what holds them up.
_POD = ("v1", "Pod")
_KINDS = (
    ("apps/v1", "DaemonSet"),
    ("batch/v1", "Job"),
    _POD,
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("v1", "ServiceAccount"),
)
_NAMESPACE = ("v1", "Namespace")


@contextlib.contextmanager
def changing(api: Api) -> Iterator[Changes]:
    """:raises PreflightError: the cluster does not answer."""
    with scratch() as directory:
        yield Changes(api, api.dynamic(directory / "kinds.json"))


class Changes:
    """See the module; made by `changing`."""

    def __init__(self, api: Api, client: Any) -> None:
        self._api = api
        self._client = client

    def _resource(self, version: str, kind: str) -> Any:
        what = f"kinds of {version}"
        return self._api.asked(
            "list", what, lambda: self._client.resources.get(api_version=version, kind=kind)
        )

    def apply(self, document: Object) -> str:
        """Make an object what the document says. :returns: its name, for people.

        :raises PreflightError: RBAC or admission refuses; says which verb and resource, or why.
        """
        resource = self._resource(document["apiVersion"], document["kind"])
        namespace = document["metadata"].get("namespace")
        self._api.asked(
            "apply",
            named(document),
            lambda: self._client.server_side_apply(
                resource, body=document, namespace=namespace, field_manager=_MANAGER, force_conflicts=True
            ),
        )
        return named(document)

    def remove(self, selector: str, namespace: str | None) -> list[str]:
        """Remove what has the label, and namespaces of it with all that is in them.

        :param namespace: only what is in this one; namespaces and what belongs to none are left alone.
        :returns: names, for people, in the order of removal.
        :raises PreflightError: RBAC refuses.
        """
        removed = []
        places: set[str] = set()
        if namespace is None:
            whole = self._labelled(*_NAMESPACE, selector, None)
            for found in whole:
                self._delete(*_NAMESPACE, found)
                removed.append(named(found))
            places = {found["metadata"]["name"] for found in whole}
        for version, kind in _KINDS:
            resource = self._resource(version, kind)
            if namespace is not None and not resource.namespaced:
                continue
            for found in self._labelled(version, kind, selector, namespace):
                is_others = (version, kind) == _POD and "ownerReferences" in found["metadata"]  # goes with it
                if found["metadata"].get("namespace") not in places and not is_others:
                    self._delete(version, kind, found)
                    removed.append(named(found))
        return removed

    def refusal(self, document: Object) -> str:
        """Why an object would not be made, as one line with the API's words; empty: it would be.

        Nothing is made. That the API does not answer is such a line, too.
        """
        resource = self._resource(document["apiVersion"], document["kind"])
        namespace = document["metadata"].get("namespace")
        try:
            self._api.asked(
                "create",
                named(document),
                lambda: self._client.create(
                    resource, body=document, namespace=namespace, dry_run=_NOTHING_IS_MADE
                ),
            )
        except PreflightError as error:
            return str(error)
        return ""

    def may(self, account: str, namespace: str, verb: str, resource: str, name: str = "") -> bool:
        """Whether a service account may do something in its namespace, as the API server decides it.

        :param resource: in the plural, of the core's.
        :param name: of one object; empty: of any.
        :raises PreflightError: RBAC refuses, or the API does not answer.
        """
        wanted = {"namespace": namespace, "verb": verb, "resource": resource, "name": name}
        # Who a token of the account would be: https://kubernetes.io/docs/reference/access-authn-authz/
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
        version, kind = "authorization.k8s.io/v1", "SubjectAccessReview"
        review = {
            "apiVersion": version,
            "kind": kind,
            "spec": {
                "user": f"system:serviceaccount:{namespace}:{account}",
                "groups": groups,
                "resourceAttributes": wanted,
            },
        }
        reviews = self._resource(version, kind)
        answer = self._api.asked("create", kind, lambda: self._client.create(reviews, body=review).to_dict())
        allowed = (answer.get("status") or {}).get("allowed") if isinstance(answer, dict) else None
        if not isinstance(allowed, bool):
            raise PreflightError("the Kubernetes API answers a SubjectAccessReview with something else")
        return allowed

    def end_pods(self, selector: str, namespace: str, grace_s: int) -> None:
        """Have pods end; they are gone some time after that.

        :param grace_s: from the signal to end to the one that kills.
        :raises PreflightError: RBAC refuses.
        """
        for found in self._labelled(*_POD, selector, namespace):
            with contextlib.suppress(NotThere):
                self._delete(*_POD, found, gracePeriodSeconds=grace_s)

    def runs(self, label: str) -> dict[str, list[str]]:
        """Values of a label that namespaces and Jobs have, and the namespaces of each."""
        found: dict[str, set[str]] = {}
        for version, kind in (_NAMESPACE, ("batch/v1", "Job"), ("apps/v1", "DaemonSet"), _POD):
            for each in self._labelled(version, kind, label, None):
                metadata = each["metadata"]
                place = metadata.get("namespace") or metadata["name"]
                found.setdefault(metadata["labels"][label], set()).add(place)
        return {run: sorted(places) for run, places in sorted(found.items())}

    def _labelled(self, version: str, kind: str, selector: str, namespace: str | None) -> list[Object]:
        resource = self._resource(version, kind)
        answer = self._api.asked(
            "list",
            f"{kind}s" + (f" in namespace {namespace}" if namespace else ""),
            lambda: self._client.get(resource, namespace=namespace, label_selector=selector).to_dict(),
        )
        items = answer.get("items") if isinstance(answer, dict) else None
        if not isinstance(items, list):
            raise PreflightError(f"the Kubernetes API answers a list of {kind}s with something else")
        return [{"apiVersion": version, "kind": kind, **item} for item in items]

    def _delete(self, version: str, kind: str, found: Object, **options: Any) -> None:
        metadata = found["metadata"]
        resource = self._resource(version, kind)
        self._api.asked(
            "delete",
            named(found),
            lambda: self._client.delete(
                resource,
                name=metadata["name"],
                namespace=metadata.get("namespace"),
                # A Job's pods would stay behind otherwise.
                body={
                    "kind": "DeleteOptions",
                    "apiVersion": "v1",
                    "propagationPolicy": "Background",
                    **options,
                },
            ),
        )


def named(document: Object) -> str:
    """``Job fl-ab12cd/fl-server``."""
    metadata = document["metadata"]
    place = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{document['kind']} {place}{metadata['name']}"
