"""Render a kustomize directory as far as our own manifests use kustomize.

The local runtime must read the very files that a cluster gets, on machines without
kubectl. What is understood: ``resources`` and ``components`` (files and directories),
``namespace``, and ``patches`` given as files, which are strategic merge patches
found by kind and name. Lists are merged by the keys that the Kubernetes API
declares for them (containers and env by name, ports by containerPort, ...), other
lists are replaced. Everything else is refused by name: silently ignoring a field
would run another experiment than the cluster does. A test compares the result with
``kubectl kustomize`` where that is installed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ztprobe.errors import UsageError

__all__ = ("Document", "render")

Document = dict[str, Any]

_FIELDS = {"apiVersion", "kind", "namespace", "resources", "components", "patches"}
_KINDS = ("Kustomization", "Component")
_CLUSTER_SCOPED = {"Namespace", "ClusterRole", "ClusterRoleBinding"}

# patchMergeKey of the lists in a pod spec (k8s.io/api/core/v1/types.go).
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
}


def render(directory: Path) -> list[Document]:
    """All documents of the kustomization in ``directory``, patched and with their namespace.

    :raises UsageError: a file is missing or malformed, or uses something outside the
        subset; names the file and the field.
    """
    return _apply(directory, [])


def _apply(directory: Path, inherited: list[Document]) -> list[Document]:
    # A component works on the documents of whoever includes it; a kustomization starts afresh.
    file = directory / "kustomization.yaml"
    head = _load_one(file)
    if head.get("kind") not in _KINDS:
        raise UsageError(f"{file}: kind is {head.get('kind')!r}, expected {' or '.join(_KINDS)}")
    for field in head:
        if field not in _FIELDS:
            raise UsageError(f"{file}: field `{field}` is not supported, only {', '.join(sorted(_FIELDS))}")
    documents = inherited
    for name in _strings(head, "resources", file):
        documents += _resource(directory / name, file)
    for name in _strings(head, "components", file):
        documents = _apply(_inside(directory / name, file), documents)
    for number, entry in enumerate(head.get("patches") or ()):
        if not isinstance(entry, dict) or set(entry) != {"path"}:
            raise UsageError(f"{file}: field `patches[{number}]` is not supported, only `path: FILE`")
        for patch in _load(_inside(directory / str(entry["path"]), file)):
            _patch(documents, patch, directory / str(entry["path"]))
    namespace = head.get("namespace")
    for document in documents:
        if namespace is not None and document["kind"] not in _CLUSTER_SCOPED:
            document["metadata"]["namespace"] = namespace
    _refuse_twins(documents, file)
    return documents


def _resource(path: Path, file: Path) -> list[Document]:
    path = _inside(path, file)
    return _apply(path, []) if path.is_dir() else list(_load(path))


def _inside(path: Path, file: Path) -> Path:
    if not path.exists():
        raise UsageError(f"{file}: {path.name} is named there, but {path} does not exist")
    return path.resolve()


def _strings(head: Document, field: str, file: Path) -> list[str]:
    value = head.get(field) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{file}: field `{field}` is {value!r}, expected a list of paths")
    return value


def _load(file: Path) -> Iterator[Document]:
    try:
        documents = list(yaml.safe_load_all(file.read_text()))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise UsageError(f"{file}: a document is {type(document).__name__}, expected a mapping")
        if file.name != "kustomization.yaml":
            _check_identity(document, file)
        yield document


def _load_one(file: Path) -> Document:
    documents = list(_load(file))
    if len(documents) != 1:
        raise UsageError(f"{file}: {len(documents)} documents, expected one")
    return documents[0]


def _check_identity(document: Document, file: Path) -> None:
    metadata = document.get("metadata")
    for field, value in (
        ("apiVersion", document.get("apiVersion")),
        ("kind", document.get("kind")),
        ("metadata.name", metadata.get("name") if isinstance(metadata, dict) else None),
    ):
        if not isinstance(value, str):
            raise UsageError(f"{file}: field `{field}` is {value!r}, expected a string")


def _identity(document: Document) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def _refuse_twins(documents: list[Document], file: Path) -> None:
    seen: set[tuple[str, str]] = set()
    for document in documents:
        if _identity(document) in seen:
            raise UsageError(f"{file}: {' '.join(_identity(document))} is defined twice")
        seen.add(_identity(document))


def _patch(documents: list[Document], patch: Document, file: Path) -> None:
    for number, document in enumerate(documents):
        if _identity(document) == _identity(patch):
            documents[number] = _merge_mapping(document, patch, file)
            return
    raise UsageError(f"{file}: patches {' '.join(_identity(patch))}, which no resource defines")


def _merge_mapping(base: Document, patch: Document, file: Path) -> Document:
    result = dict(base)
    for key, value in patch.items():
        if key.startswith("$"):
            raise UsageError(f"{file}: field `{key}: {value}` is not supported here")
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            result[key] = _merge_mapping(base[key], value, file)
        elif isinstance(value, list) and isinstance(base.get(key), list) and key in _MERGE_KEYS:
            result[key] = _merge_list(base[key], value, _MERGE_KEYS[key], key, file)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _merge_list(base: list[Any], patch: list[Any], merge_key: str, field: str, file: Path) -> list[Any]:
    result = {item.get(merge_key): item for item in base}
    for item in patch:
        if not isinstance(item, dict) or merge_key not in item:
            raise UsageError(f"{file}: an entry of `{field}` has no `{merge_key}`")
        name = item[merge_key]
        directive = item.get("$patch")
        if directive == "delete":
            result.pop(name, None)
        elif directive is not None:
            raise UsageError(f"{file}: field `{field}[{name}].$patch: {directive}` is not supported")
        else:
            result[name] = _merge_mapping(result.get(name, {}), item, file)
    return list(result.values())
