"""Strategic merge patches as kustomize applies them. Pure.

Mappings are merged, ``null`` removes a key, and most lists are replaced. The lists that the Kubernetes
API declares to be sets of entries are merged entry by entry, found by all of their keys: a container's
ports by ``containerPort`` and ``protocol``, a Service's by ``port`` and ``protocol``. What a patch
mentions comes first in the result, in the patch's order; that order decides which variables a ``$(VAR)``
may refer to.

kustomize itself drops an entry in silence when one side leaves a key out (a port without ``protocol``),
and some directives do not do what they say. Those are refused by name: a run must not differ from the
cluster's without a word. Tried with kustomize 5.5; a test compares the two over a corpus.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ztprobe.documents.problem import shown

__all__ = ("PatchError", "merge")

Path = tuple[str, ...]

# x-kubernetes-list-map-keys, or else x-kubernetes-patch-merge-key, of k8s.io/api's OpenAPI description.
_CONTAINER_LISTS: Mapping[Path, Path] = {
    (): ("name",),
    ("env",): ("name",),
    ("ports",): ("containerPort", "protocol"),
    ("volumeMounts",): ("mountPath",),
    ("volumeDevices",): ("devicePath",),
}
_POD_LISTS: Mapping[Path, Path] = {
    ("volumes",): ("name",),
    ("imagePullSecrets",): ("name",),
    ("hostAliases",): ("ip",),
    ("topologySpreadConstraints",): ("topologyKey", "whenUnsatisfiable"),
    **{
        (containers, *path): keys
        for containers in ("containers", "initContainers", "ephemeralContainers")
        for path, keys in _CONTAINER_LISTS.items()
    },
}
_TEMPLATE: Path = ("spec", "template", "spec")
_POD_SPECS: Mapping[str, Path] = {
    "Pod": ("spec",),
    "CronJob": ("spec", "jobTemplate", *_TEMPLATE),
    **dict.fromkeys(("DaemonSet", "Deployment", "Job", "ReplicaSet", "StatefulSet"), _TEMPLATE),
}
_OTHER_LISTS: Mapping[str, Mapping[Path, Path]] = {
    "Service": {("spec", "ports"): ("port", "protocol")},
    "ServiceAccount": {("secrets",): ("name",)},
}
# Merged as sets of plain values, which no manifest here needs.
_UNSUPPORTED: tuple[Path, ...] = (("metadata", "finalizers"), ("metadata", "ownerReferences"))
_OPTIONAL_KEYS = ("protocol",)
_DIRECTIVE = "$patch"


class PatchError(ValueError):
    """A patch that is not applied as it stands; says where in the document and why."""


def merge(kind: str, base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any] | None:
    """``base`` with ``patch`` applied; None: the patch deletes it.

    :param kind: of both documents; says which lists are sets.
    :raises PatchError: the patch does not fit, or kustomize would not do what it seems to say.
    """
    directive = patch.get(_DIRECTIVE)
    if directive == "delete":
        return None
    if directive is not None:
        raise PatchError(f"`$patch: {shown(directive)}` of a whole document is not supported here")
    at = _POD_SPECS.get(kind)
    lists = dict(_OTHER_LISTS.get(kind, {}))
    if at is not None:
        lists |= {(*at, *path): keys for path, keys in _POD_LISTS.items()}
    return _Merge(lists).mapping(base, patch, ())


class _Merge:
    def __init__(self, lists: Mapping[Path, Path]) -> None:
        self._lists = lists

    def mapping(self, base: Mapping[str, Any], patch: Mapping[str, Any], path: Path) -> dict[str, Any]:
        directive = patch.get(_DIRECTIVE)
        patch = {key: value for key, value in patch.items() if key != _DIRECTIVE}
        if directive not in (None, "merge", "replace"):
            raise _problem(path, f"`$patch: {shown(directive)}` is not supported here")
        result = {} if directive == "replace" else dict(base)
        for key, value in patch.items():
            here = (*path, key)
            if key.startswith("$"):
                raise _problem(here, "is not supported here")
            if value is None or value == {_DIRECTIVE: "delete"} or value == [{_DIRECTIVE: "delete"}]:
                result.pop(key, None)
            elif isinstance(value, dict):
                result[key] = self.mapping(_same(result.get(key), dict, here) or {}, value, here)
            elif isinstance(value, list):
                result[key] = self._list(_same(result.get(key), list, here), value, here)
            else:
                _same(result.get(key), str, here)
                result[key] = value
        return result

    def _list(self, base: list[Any] | None, patch: list[Any], path: Path) -> list[Any]:
        keys = self._lists.get(path)
        if path in _UNSUPPORTED:
            raise _problem(path, "cannot be patched here")
        if keys is None:
            return [_without_nulls(item, path) for item in patch]
        if {_DIRECTIVE: "replace"} in patch:
            base, patch = [], [item for item in patch if item != {_DIRECTIVE: "replace"}]
        before, mentioned = _by_keys(base or [], keys, path), _by_keys(patch, keys, path)
        result = []
        for entry, item in mentioned.items():
            _refuse_half_a_match(entry, before, keys, path)
            directive = item.get(_DIRECTIVE)
            if directive == "delete":
                before.pop(entry, None)
                continue
            if directive not in (None, "merge"):
                raise _problem(path, f"`$patch: {shown(directive)}` of an entry is not supported here")
            result.append(self.mapping(before.pop(entry, {}), item, path))
        return result + list(before.values())


def _by_keys(items: list[Any], keys: Path, path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for item in items:
        if not isinstance(item, dict):
            raise _problem(path, f"has the entry {shown(item)}, expected a mapping")
        missing = [key for key in keys if item.get(key) is None and key not in _OPTIONAL_KEYS]
        if missing:
            raise _problem(path, f"has an entry without `{missing[0]}`")
        entry = tuple(shown(item.get(key)) for key in keys)
        if entry in found:
            words = ", ".join(f"{key} {value}" for key, value in zip(keys, entry, strict=True))
            raise _problem(path, f"has two entries with {words}")
        found[entry] = item
    return found


def _refuse_half_a_match(entry: tuple[Any, ...], base: Mapping[Any, Any], keys: Path, path: Path) -> None:
    for other in base:
        if entry != other and entry[0] == other[0] and shown(None) in (*entry, *other):
            raise _problem(
                path,
                f"has the {keys[0]} {entry[0]} with `{keys[-1]}` and without: kustomize would drop the"
                f" patch in silence; write `{keys[-1]}` in both",
            )


def _same(base: Any, kind: type, path: Path) -> Any:
    # A patch may fill in what is missing, and not make a list of a mapping.
    fits = not isinstance(base, dict | list) if kind is str else isinstance(base, kind)
    if base is not None and not fits:
        raise _problem(path, f"is {shown(base)} in what is patched, and of another kind in the patch")
    return base


def _without_nulls(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        for key in value:
            if key.startswith("$"):
                raise _problem((*path, key), "is not supported here")
        return {key: _without_nulls(item, path) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item, path) for item in value]
    return copy.deepcopy(value)


def _problem(path: Path, words: str) -> PatchError:
    return PatchError(f"field `{'.'.join(path)}` {words}")
