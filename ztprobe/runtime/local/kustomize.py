"""Render a kustomize directory as far as our own manifests use kustomize.

The local runtime must read the very files that a cluster gets, on machines without
kubectl. What is understood: ``resources`` and ``components`` (files and directories),
``namespace``, and ``patches`` given as files, which are strategic merge patches
(`ztprobe.runtime.local.strategic_merge`) found by API group, kind, name and namespace.
Everything else is refused by name: silently ignoring a field would run another experiment
than the cluster does. A test compares the result with ``kubectl kustomize`` over a corpus,
where that is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ztprobe.documents.files import read_text
from ztprobe.documents.problem import DocumentError, shown
from ztprobe.documents.strict_yaml import kustomize_scalar, parse_yaml
from ztprobe.errors import UsageError
from ztprobe.runtime.local.strategic_merge import PatchError, merge

__all__ = ("Document", "render")

Document = dict[str, Any]

_FILES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_FIELDS = {"apiVersion", "kind", "namespace", "resources", "components", "patches"}
_KINDS = ("Kustomization", "Component")
_CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "PersistentVolume",
    "PriorityClass",
    "StorageClass",
}
_MOST_BYTES = 1 << 20
_DEEPEST = 20  # kustomizations that include each other


@dataclass
class _Resource:
    # A document, and the namespaces that it has had: a patch may mean it by any of them.
    document: Document
    namespaces: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.namespaces.add(self.namespace)

    @property
    def namespace(self) -> str:
        return str(self.document["metadata"].get("namespace") or "default")

    @property
    def words(self) -> str:
        return f"{self.document['kind']} {self.document['metadata']['name']}"

    def is_meant_by(self, patch: Document) -> bool:
        namespace = patch["metadata"].get("namespace") or "default"
        return _identity(patch) == _identity(self.document) and namespace in self.namespaces


def render(directory: Path) -> list[Document]:
    """All documents of the kustomization in ``directory``, patched and with their namespace.

    :raises UsageError: a file is missing or malformed, or uses something outside the
        subset; names the file and the field.
    """
    return [resource.document for resource in _apply(directory, [], 0)]


def _apply(directory: Path, inherited: list[_Resource], depth: int) -> list[_Resource]:
    # A component works on the documents of whoever includes it; a kustomization starts afresh.
    file = _kustomization(directory)
    if depth > _DEEPEST:
        raise UsageError(f"{file}: includes itself, or {_DEEPEST} others in each other")
    head = _head(file)
    resources = inherited
    for name in _strings(head, "resources", file):
        resources += _resource(directory / name, file, depth)
    _refuse_twins(resources, file)
    for name in _strings(head, "components", file):
        resources = _apply(_inside(directory / name, file), resources, depth + 1)
    patches = head.get("patches") or ()
    if not isinstance(patches, list | tuple):
        raise UsageError(f"{file}: field `patches` is {shown(patches)}, expected a list")
    for number, entry in enumerate(patches):
        if not isinstance(entry, dict) or set(entry) != {"path"}:
            raise UsageError(f"{file}: field `patches[{number}]` is not supported, only `path: FILE`")
        for patch in _load(_inside(directory / str(entry["path"]), file)):
            _patch(resources, patch, directory / str(entry["path"]))
    if (namespace := head.get("namespace")) is not None and not isinstance(namespace, str):
        raise UsageError(f"{file}: field `namespace` is {shown(namespace)}, expected text")
    for resource in resources if namespace else ():
        _put_in(resource, str(namespace))
    _refuse_twins(resources, file)
    return resources


def _put_in(resource: _Resource, namespace: str) -> None:
    kind, metadata = resource.document["kind"], resource.document["metadata"]
    if kind == "Namespace":
        metadata["name"] = namespace
    elif kind not in _CLUSTER_SCOPED:
        metadata["namespace"] = namespace
        resource.namespaces.add(namespace)
    for subject in resource.document.get("subjects") or () if kind.endswith("RoleBinding") else ():
        if isinstance(subject, dict) and subject.get("name") == "default":
            subject["namespace"] = namespace


def _kustomization(directory: Path) -> Path:
    found = [directory / name for name in _FILES if (directory / name).exists()]
    if len(found) > 1:
        raise UsageError(f"{directory}: has {found[0].name} and {found[1].name}, expected one of them")
    return found[0] if found else directory / _FILES[0]


def _resource(path: Path, file: Path, depth: int) -> list[_Resource]:
    inside = _inside(path, file)
    if inside.is_dir():
        return _apply(inside, [], depth + 1)
    if file.parent.resolve() not in inside.parents:
        raise UsageError(f"{file}: {path.name} is not in or below its directory, where kustomize wants files")
    return [_Resource(document) for document in _load(inside)]


def _inside(path: Path, file: Path) -> Path:
    if "\0" in str(path) or not path.exists():
        raise UsageError(f"{file}: {path.name} is named there, but {path} does not exist")
    return path.resolve()


def _strings(head: Document, name: str, file: Path) -> list[str]:
    value = head.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{file}: field `{name}` is {shown(value)}, expected a list of paths")
    return value


def _load(file: Path) -> Iterator[Document]:
    try:
        documents = parse_yaml(read_text(file, _MOST_BYTES), kustomize_scalar)
    except DocumentError as error:
        raise UsageError(error.at(file)) from error
    for parsed in documents:
        document = parsed.value
        if document is None:
            continue
        if not isinstance(document, dict):
            raise UsageError(f"{file}: a document is {type(document).__name__}, expected a mapping")
        if file.name not in _FILES:
            _check_identity(document, file)
        yield document


def _head(file: Path) -> Document:
    documents = list(_load(file))
    if len(documents) != 1:
        raise UsageError(f"{file}: {len(documents)} documents, expected one")
    (head,) = documents
    if head.get("kind", _KINDS[0]) not in _KINDS:
        raise UsageError(f"{file}: kind is {shown(head['kind'])}, expected {' or '.join(_KINDS)}")
    for name in head:
        if name not in _FIELDS:
            raise UsageError(f"{file}: field `{name}` is not supported, only {', '.join(sorted(_FIELDS))}")
    return head


def _check_identity(document: Document, file: Path) -> None:
    metadata = document.get("metadata")
    for name, value in (
        ("apiVersion", document.get("apiVersion")),
        ("kind", document.get("kind")),
        ("metadata.name", metadata.get("name") if isinstance(metadata, dict) else None),
    ):
        if not isinstance(value, str):
            raise UsageError(f"{file}: field `{name}` is {shown(value)}, expected a string")


def _identity(document: Document) -> tuple[str, str, str]:
    return document["apiVersion"], document["kind"], document["metadata"]["name"]


def _refuse_twins(resources: list[_Resource], file: Path) -> None:
    seen: set[tuple[str, str, str, str]] = set()
    for resource in resources:
        group, kind, name = _identity(resource.document)
        twin = (group.rpartition("/")[0], kind, name, resource.namespace)
        if twin in seen:
            raise UsageError(f"{file}: {resource.words} is defined twice")
        seen.add(twin)


def _patch(resources: list[_Resource], patch: Document, file: Path) -> None:
    meant = [resource for resource in resources if resource.is_meant_by(patch)]
    words = f"{patch['kind']} {patch['metadata']['name']}"
    if len(meant) != 1:
        what = "which no resource defines" if not meant else "which more than one resource may be"
        raise UsageError(f"{file}: patches {words}, {what}")
    (resource,) = meant
    # A patch says whom it means, and does not move it.
    named = {key: value for key, value in patch["metadata"].items() if key not in ("name", "namespace")}
    try:
        merged = merge(resource.document["kind"], resource.document, patch | {"metadata": named})
    except PatchError as error:
        raise UsageError(f"{file}: {words}: {error}") from error
    if merged is None:
        resources.remove(resource)
    else:
        resource.document = merged
