"""One set of manifests for many runs side by side: their names, their namespace, their label. Pure.

The manifests say one namespace. A run has one of its own, and everything that names it goes along: objects,
bindings, addresses, the proxies' configuration, and identities, which the server's proxy compares byte for
byte with the certificate's DER.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from ztprobe.errors import UsageError
from ztprobe.runtime.local.certificates import Authority, spiffe_id
from ztprobe.runtime.local.kustomize import Document

__all__ = ("RUN_LABEL", "in_namespace", "labelled", "once", "tls_secret", "with_image")

RUN_LABEL = "ztprobe.run"


def in_namespace(
    documents: Sequence[Document], old: str, new: str, accounts: Sequence[str]
) -> list[Document]:
    """The documents in another namespace.

    :param accounts: service accounts whose identities configurations hold in DER.
    """
    swaps = [(f".{old}.svc.cluster.local", f".{new}.svc.cluster.local"), (f"/ns/{old}/sa/", f"/ns/{new}/sa/")]
    swaps += [(_der(old, account), _der(new, account)) for account in accounts]
    found = [_moved(document, old, new, swaps) for document in documents]
    for document in found:
        if document["kind"] == "Namespace" and document["metadata"]["name"] == old:
            document["metadata"]["name"] = new
    return found


def _moved(value: Any, old: str, new: str, swaps: Sequence[tuple[str, str]]) -> Any:
    if isinstance(value, dict):
        return {
            key: new if key == "namespace" and item == old else _moved(item, old, new, swaps)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_moved(item, old, new, swaps) for item in value]
    if isinstance(value, str):
        for before, after in swaps:
            value = value.replace(before, after)
    return value


def _der(namespace: str, account: str) -> str:
    # A URI name: context tag 6, length, text. Namespaces and accounts have 63 characters at most.
    name = spiffe_id(namespace, account).encode()
    if len(name) > 127:
        raise UsageError(
            f"namespace {namespace}: is too long for the certificates' names; take a shorter one"
        )
    return (bytes([0x86, len(name)]) + name).hex().upper()


def labelled(documents: Sequence[Document], run: str) -> list[Document]:
    """With the run's label on everything, and on the pods that come of it."""
    found = []
    for document in documents:
        document = document | {"metadata": _with_label(document["metadata"], run)}
        if "template" in document.get("spec", {}):
            template = document["spec"]["template"]
            template = template | {"metadata": _with_label(template.get("metadata", {}), run)}
            document["spec"] = document["spec"] | {"template": template}
        found.append(document)
    return found


def _with_label(metadata: Mapping[str, Any], run: str) -> dict[str, Any]:
    return {**metadata, "labels": {**(metadata.get("labels") or {}), RUN_LABEL: run}}


def once(document: Document) -> Document:
    """A Deployment as a Job that runs once: one that has ended is not started again, and its log stays."""
    if document["kind"] != "Deployment":
        return document
    template = document["spec"]["template"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": document["metadata"],
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 0,
            "template": template | {"spec": template["spec"] | {"restartPolicy": "Never"}},
        },
    }


def with_image(document: Document, ours: str, image: str) -> Document:
    """With another image in the place of ours.

    :param ours: without its tag.
    """
    if "template" not in document.get("spec", {}):
        return document
    template = document["spec"]["template"]
    spec = dict(template["spec"])
    for section in ("initContainers", "containers"):
        if section in spec:
            spec[section] = [
                c | {"image": image} if c["image"].rpartition(":")[0] == ours else c for c in spec[section]
            ]
    return document | {"spec": document["spec"] | {"template": template | {"spec": spec}}}


def tls_secret(
    authority: Authority, name: str, namespace: str, account: str, dns_names: Sequence[str]
) -> Document:
    """A Secret with a certificate for a service account."""
    signed = authority.sign(namespace, account, dns_names)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace},
        "data": {key: base64.b64encode(content).decode() for key, content in signed.items()},
    }
