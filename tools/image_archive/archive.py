"""A root as an OCI archive of one layer: the same bytes for the same files and configuration."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools.image_archive.dockerfile import Configuration
from tools.image_archive.errors import ImageError

__all__ = ("Written", "write")

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # as Go calls them
_TYPE = "application/vnd.oci.image"
# Held by nothing that runs, and different each time.
_TRACES = (
    *("var/cache/ldconfig/aux-cache", "var/lib/dpkg/*-old", "var/cache/debconf/*-old", "etc/*-"),
    *("var/log/*.log", "var/log/apt/*", "var/lib/apt/lists/*", "var/cache/apt/*.bin"),
)


@dataclass(frozen=True)
class Written:
    """What was written."""

    digest: str  # of the manifest: by which a registry would name the image
    compressed_bytes: int  # what a node has to fetch


def write(
    root: Path,
    configuration: Configuration,
    name: str,
    made_unix_s: int,
    work: Path,
    target: Path,
) -> Written:
    """Write the archive.

    :param root: the files; what differs each time and nobody reads is taken out of it.
    :param name: repository:tag.
    :param made_unix_s: no file is said to be younger than this.
    :param work: an empty directory for the layer.
    """
    for pattern in _TRACES:
        for path in root.glob(pattern):
            if path.is_file():
                path.unlink()
    layer, diff_id, content = _layer(root, made_unix_s, work)
    created = datetime.fromtimestamp(made_unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = _json(
        {
            "created": created,
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": configuration.as_oci(),
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "created_by": "tools/images"}],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_TYPE}.manifest.v1+json",
            "config": _descriptor("config.v1+json", config),
            "layers": [layer],
        }
    )
    described = _descriptor("manifest.v1+json", manifest)
    # By the first containerd names what it imports, by the second everybody else.
    described["annotations"] = {
        "io.containerd.image.name": f"docker.io/{name}",
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    index = {"schemaVersion": 2, "mediaType": f"{_TYPE}.index.v1+json", "manifests": [described]}
    blobs: dict[str, bytes | Path] = {
        described["digest"]: manifest,
        _digest(config): config,
        layer["digest"]: content,
    }
    files = {f"blobs/{digest.replace(':', '/')}": blobs[digest] for digest in sorted(blobs)}
    files |= {"index.json": _json(index), "oci-layout": _json({"imageLayoutVersion": "1.0.0"})}
    _pack(target, made_unix_s, files)
    return Written(described["digest"], layer["size"] + len(config) + len(manifest))


def _layer(root: Path, made_unix_s: int, work: Path) -> tuple[dict[str, Any], str, Path]:
    # The layer's descriptor, the digest of what it holds before compression, and the file.
    argv = [
        *("tar", "--create", "--directory", str(root), "--sort=name", "--numeric-owner", "--one-file-system"),
        *("--format=posix", "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"),
        *(
            f"--mtime=@{made_unix_s}",
            "--clamp-mtime",
            "--xattrs",
            "--xattrs-include=security.capability",
            ".",
        ),
    ]
    plain, packed, size_bytes = hashlib.sha256(), hashlib.sha256(), 0
    gzip = zlib.compressobj(level=6, wbits=16 + zlib.MAX_WBITS)  # without name and time
    path = work / "layer.tar.gz"
    with path.open("wb") as file, subprocess.Popen(argv, stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        while block := tar.stdout.read(1 << 20):
            plain.update(block)
            size_bytes += file.write(part := gzip.compress(block))
            packed.update(part)
        size_bytes += file.write(part := gzip.flush())
        packed.update(part)
    if tar.returncode != 0:
        raise ImageError("tar failed")
    descriptor = {
        "mediaType": f"{_TYPE}.layer.v1.tar+gzip",
        "digest": f"sha256:{packed.hexdigest()}",
        "size": size_bytes,
    }
    return descriptor, f"sha256:{plain.hexdigest()}", path


def _pack(target: Path, made_unix_s: int, files: Mapping[str, bytes | Path]) -> None:
    new = target.with_name(target.name + ".new")
    with tarfile.open(new, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mtime, entry.mode = made_unix_s, 0o644
            if isinstance(content, Path):
                entry.size = content.stat().st_size
                with content.open("rb") as file:
                    archive.addfile(entry, file)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    new.replace(target)


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": f"{_TYPE}.{kind}", "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
