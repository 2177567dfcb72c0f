"""An image from its Dockerfile: stage by stage, step by step, up to the archive."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from docker.utils.build import exclude_paths

from tools.image_archive.archive import Written, write
from tools.image_archive.dockerfile import Copy, Run, Step, read
from tools.image_archive.errors import ImageError
from tools.image_archive.machine import Machine

__all__ = ("build",)


def build(dockerfile: Path, context: Path, name: str, work: Path, cache: Path, target: Path) -> Written:
    """Make the image.

    :param context: what the Dockerfile copies from, less what .dockerignore there names.
    :param work: an empty directory; it goes with the caller.
    :param target: the archive.
    :raises ImageError: a step cannot be carried out or fails; it is named by file and line.
    """
    made_unix_s = _made_unix_s(context)
    stages = read(dockerfile)
    machine = Machine(work, cache, made_unix_s)
    roots: dict[str, Path] = {}
    for stage in stages:
        root = roots[stage.name] = work / f"root-{len(roots)}"
        machine.make_root(stage.suite, root)
        for step in stage.steps:
            begun_s = time.monotonic()
            try:
                _carry_out(step, root, context, roots, machine)
            except ImageError as error:
                raise ImageError(f"{dockerfile}:{step.line}: {step.shown}: {error}") from None
            print(f"images:   {step.shown}: {time.monotonic() - begun_s:.0f} s", flush=True)
    last = stages[-1]
    return write(roots[last.name], last.configuration, name, made_unix_s, work, target)


def _carry_out(step: Step, root: Path, context: Path, roots: dict[str, Path], machine: Machine) -> None:
    configuration, action = step.configuration, step.action
    (root / configuration.workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
    if isinstance(action, Run):
        machine.run(root, action.argv, configuration.env, configuration.user, configuration.workdir)
    elif isinstance(action, Copy):
        if action.stage is None:
            _copy(action, context, _let_in(context), root)
        elif action.stage in roots:
            _copy(action, roots[action.stage], None, root)
        else:
            raise ImageError(f"no stage {action.stage}")


def _let_in(context: Path) -> set[str]:
    file = context / ".dockerignore"
    lines = file.read_text().splitlines() if file.exists() else []
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    # A builder needs that file; the image does not.
    found: set[str] = exclude_paths(str(context), patterns)
    return found - {".dockerignore", "Dockerfile"}


def _copy(action: Copy, origin: Path, let_in: set[str] | None, root: Path) -> None:
    # As Docker does it: of a directory what it holds, and all of it root's.
    target = root / action.target.lstrip("/")
    for source in action.sources:
        path = origin / source.lstrip("/")
        if not path.exists():
            raise ImageError(f"{source} is not there")
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            if let_in is None:
                subprocess.run(["cp", "--archive", f"{path}/.", str(target)], check=True)
                continue
            for file in sorted(let_in):
                inside = os.path.relpath(context_path := origin / file, path)
                if not inside.startswith("..") and context_path.is_file():
                    _copy_file(context_path, target / inside)
        elif let_in is not None and os.path.normpath(source) not in let_in:
            raise ImageError(f"{source} is left out by .dockerignore")
        else:
            _copy_file(path, target / path.name if action.into or target.is_dir() else target)


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)
    os.chown(target, 0, 0, follow_symlinks=False)


def _made_unix_s(tree: Path) -> int:
    # The convention of https://reproducible-builds.org/specs/source-date-epoch/; or that of the last commit.
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    argv = ["git", "-C", str(tree), "log", "-1", "--format=%ct"]
    told = subprocess.run(argv, capture_output=True, text=True, check=False)
    return int(told.stdout) if told.returncode == 0 else 0
