"""The objects in force in a live run (namespaces and policies), for commands that did not make it.

``/run/ztprobe/RUN/objects.jsonl``, readable by root alone: a line for each time that they changed, the
newest last, so that what was dropped a moment ago is judged by what was in force then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztprobe.errors import RunDirError
from ztprobe.rundir import files

__all__ = ("InForce", "objects_in_force", "publish_objects")

_FILE = "objects.jsonl"


@dataclass(frozen=True, kw_only=True)
class InForce:
    """Objects, as Kubernetes writes them, and since when they were in force."""

    since_ns: int  # CLOCK_MONOTONIC
    objects: tuple[Mapping[str, Any], ...]


def publish_objects(state_dir: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """These are in force from now on.

    :param state_dir: the run's own, with its journal.
    :raises OSError: it cannot be written.
    """
    line = json.dumps({"since_ns": time.monotonic_ns(), "objects": list(objects)}) + "\n"
    if (state_dir / _FILE).exists():
        files.append(state_dir / _FILE, line.encode(), make=False)
    else:
        files.write_whole(state_dir / _FILE, line.encode(), mode=0o600)


def objects_in_force(state_dir: Path) -> list[InForce]:
    """What a run has published so far, the oldest first; empty: nothing.

    :raises RunDirError: it is damaged.
    """
    try:
        lines = (state_dir / _FILE).read_text().splitlines()
    except OSError:
        return []
    try:
        said = [json.loads(line) for line in lines]
        return [InForce(since_ns=int(one["since_ns"]), objects=tuple(one["objects"])) for one in said]
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirError(f"{state_dir / _FILE}: is damaged; end that run and start it again") from error
