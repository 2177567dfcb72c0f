"""The image that holds a pod's namespaces: one program, as an archive."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tools.image_archive.archive import write
from tools.image_archive.dockerfile import Configuration
from tools.kube_cluster.places import PAUSE_IMAGE, bin_dir

__all__ = ("write_pause",)

_MADE_UNIX_S = 1_600_000_000  # whenever: of a program that does nothing


def write_pause(target: Path) -> None:
    """Make the archive."""
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        root, work = Path(made) / "root", Path(made) / "work"
        root.mkdir(mode=0o755)
        work.mkdir()
        shutil.copy(bin_dir() / "pause", root / "pause")
        configuration = Configuration(user="65535:65535", entrypoint=("/pause",))
        name = PAUSE_IMAGE.removeprefix("docker.io/")
        write(root, configuration, name, _MADE_UNIX_S, work, target)
