"""A run's certificates as files, for whoever tries them: its pods', and one that nobody is to trust."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path

from ztprobe.rundir import files
from ztprobe.runtime.local.certificates import Authority
from ztprobe.runtime.local.kustomize import Document

__all__ = ("RunCertificates",)

_TYPE = "kubernetes.io/tls"


class RunCertificates:
    """Written by `write`, where only root reads them.

    :param documents: of the run, with its Secrets.
    """

    def __init__(self, documents: Iterable[Document]) -> None:
        self._contents: dict[str, Mapping[str, str]] = {
            document["metadata"]["name"]: document["data"]
            for document in documents
            if document["kind"] == "Secret" and document.get("type") == _TYPE
        }
        self._directory = Path()

    def write(self, directory: Path) -> None:
        """One directory for each Secret, as its volume holds it."""
        self._directory = directory
        for secret, contents in self._contents.items():
            for name, text in contents.items():
                self._write(self.of(secret) / name, base64.b64decode(text))

    def of(self, secret: str) -> Path:
        """The directory with a Secret's."""
        return self._directory / secret

    def foreign(self, namespace: str, account: str) -> Path:
        """The directory with a certificate of an account's name, signed by nobody whom the pods know."""
        directory = self._directory / "foreign"
        for name, content in Authority("foreign").sign(namespace, account, []).items():
            self._write(directory / name, content)
        return directory

    def _write(self, path: Path, content: bytes) -> None:
        files.write_whole(path, content, mode=0o400, make=0o700)
