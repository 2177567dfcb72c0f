"""What processes show of their framework from outside: commands, loaded files, versions installed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ztprobe.frameworks.detect import ProcessFacts, framework_of
from ztprobe.frameworks.source import Framework

__all__ = ("recognised",)

_MOST_MAPS_BYTES = 4 << 20
_SITE_PACKAGES = "lib/python3*/site-packages"


def recognised(
    commands: Mapping[int, str], heads: Iterable[bytes] = (), *, proc: Path = Path("/proc")
) -> Framework:
    """The framework of a deployment.

    :param commands: of its processes, by their number; those that have ended tell by their commands alone.
    :param heads: the first bytes of payloads that were seen.
    """
    facts = [
        ProcessFacts(pid=pid, command=command, files=_files(proc / str(pid)))
        for pid, command in sorted(commands.items())
    ]
    installed = {name for pid, command in commands.items() for name in _installed(proc / str(pid), command)}
    return framework_of(facts, heads, sorted(installed))


def _files(process: Path) -> frozenset[str]:
    """Of the files that it maps, those of Python packages."""
    try:
        with (process / "maps").open("rb") as stream:
            text = stream.read(_MOST_MAPS_BYTES).decode("utf-8", "replace")
    except OSError:
        return frozenset()
    paths = {line[line.index("/") :] for line in text.splitlines() if "-packages/" in line and "/" in line}
    return frozenset(paths)


def _installed(process: Path, command: str) -> Iterable[str]:
    """Names of packages' metadata beside the programs that its command names, in its own root."""
    for word in command.split()[:2]:
        if not word.startswith("/"):
            continue
        # Lexically: what a container's links mean is not for this machine's root to say.
        prefix = os.path.normpath(word).rpartition("/bin/")[0]
        with contextlib.suppress(OSError, ValueError):
            for directory in (process / "root" / prefix.lstrip("/")).glob(_SITE_PACKAGES):
                yield from (entry.name for entry in directory.glob("*.dist-info"))
