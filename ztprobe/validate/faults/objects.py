"""The Kubernetes objects of a security level with a mistake in them, as manifests of their own.

What a fault edits are the documents that the level's overlay comes to; they are written as one overlay
that holds nothing else, and stay beside the run for whoever wants to see what was wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ztprobe.paths import MANIFESTS_DIR
from ztprobe.runtime.local.kustomize import render

__all__ = ("Edit", "EditedObjects", "overlay_name", "write_overlay")

Document = dict[str, Any]


class EditedObjects:
    """The documents of a level, to be changed in place."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents

    def one(self, kind: str, name: str) -> Document:
        """:raises LookupError: there is none of that kind and name."""
        for document in self.documents:
            if (document["kind"], document["metadata"]["name"]) == (kind, name):
                return document
        raise LookupError(f"no {kind} {name} among the manifests")

    def remove(self, kind: str, name: str) -> None:
        """Take a document out."""
        self.documents.remove(self.one(kind, name))

    def add(self, document: Document) -> None:
        """Put one more in."""
        self.documents.append(document)

    def policy(self, name: str) -> Document:
        """A NetworkPolicy's spec."""
        spec: Document = self.one("NetworkPolicy", name)["spec"]
        return spec

    def config(self, name: str) -> dict[str, str]:
        """A ConfigMap's data."""
        data: dict[str, str] = self.one("ConfigMap", name)["data"]
        return data

    def pod(self, owner: str) -> Document:
        """A template's pod spec, by its owner's name."""
        spec: Document = self._owner(owner)["spec"]["template"]["spec"]
        return spec

    def _owner(self, name: str) -> Document:
        return self.one("Deployment" if name == "fl-server" else "Job", name)

    def container(self, owner: str, name: str) -> Document:
        """One container of an owner's pods, sidecars included."""
        spec = self.pod(owner)
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            if container["name"] == name:
                found: Document = container
                return found
        raise LookupError(f"{owner} has no container {name}")

    def set_env(self, owner: str, container: str, values: Mapping[str, str]) -> None:
        """Give variables of a container other values."""
        env = self.container(owner, container).setdefault("env", [])
        env[:] = [item for item in env if item["name"] not in values]
        env += [{"name": name, "value": value} for name, value in values.items()]

    def replace(self, config: str, old: str, new: str) -> None:
        """Change the words of a proxy's configuration. :raises LookupError: they are not there."""
        data = self.config(config)
        if old not in data["haproxy.cfg"]:
            raise LookupError(f"{config} does not say {old!r}")
        data["haproxy.cfg"] = data["haproxy.cfg"].replace(old, new)


Edit = Callable[[EditedObjects], None]


def overlay_name(level: int, *, edges: bool) -> str:
    """Of a level's objects, with or without edge aggregators."""
    return f"sec{level}{'-edges' if edges else ''}"


def write_overlay(level: int, edit: Edit | None, directory: Path, *, edges: bool = False) -> Path:
    """Write a level's objects, edited, and return the directory of manifests that holds them.

    :param directory: to make.
    :param edges: whether those with edge aggregators.
    """
    name = overlay_name(level, edges=edges)
    documents = copy.deepcopy(render(MANIFESTS_DIR / "overlays" / name))
    objects = EditedObjects(documents)
    if edit is not None:
        edit(objects)
    overlay = directory / "overlays" / name
    overlay.mkdir(parents=True)
    head = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["objects.yaml"],
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(head, sort_keys=False))
    (overlay / "objects.yaml").write_text(yaml.safe_dump_all(objects.documents, sort_keys=False))
    return directory
