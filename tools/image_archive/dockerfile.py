"""A Dockerfile as stages and steps, and the configuration that its instructions add up to."""

from __future__ import annotations

import io
import json
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dockerfile_parse import DockerfileParser
from dockerfile_parse.util import extract_key_values

from tools.image_archive.errors import ImageError

__all__ = ("Configuration", "Copy", "Run", "Stage", "Step", "read")

# What Debian's image has.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BASE = re.compile(r"debian:(?P<suite>[a-z]+)-slim")


@dataclass(frozen=True)
class Configuration:
    """What an image says of how it is run."""

    env: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    labels: dict[str, str] = field(default_factory=dict)
    user: str = ""  # "": root
    workdir: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def as_oci(self) -> dict[str, Any]:
        """As OCI's image-spec, config.md, has it; without what is empty."""
        said = {
            "User": self.user,
            "Env": [f"{name}={value}" for name, value in self.env.items()],
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.command),
            "WorkingDir": self.workdir,
            "Labels": self.labels,
        }
        return {name: value for name, value in said.items() if value}


@dataclass(frozen=True)
class Run:
    """A command."""

    argv: tuple[str, ...]


@dataclass(frozen=True)
class Copy:
    """Files from the build's context, or from a stage."""

    sources: tuple[str, ...]
    target: str  # absolute
    into: bool  # into that directory, rather than as it
    stage: str | None


@dataclass(frozen=True)
class Step:
    """One instruction that changes files, under the configuration that stands there."""

    line: int
    text: str
    action: Run | Copy | None  # None: only the work directory has to be there
    configuration: Configuration

    @property
    def shown(self) -> str:
        """In a line of progress."""
        return textwrap.shorten(self.text, 90, placeholder=" ...")


@dataclass
class Stage:
    """From a FROM to the next."""

    name: str
    suite: str  # of Debian
    steps: list[Step]
    configuration: Configuration


def read(path: Path) -> list[Stage]:
    """:raises ImageError: an instruction is there that nothing here carries out; file and line are named."""
    stages: list[Stage] = []
    # Given a path, the parser wants the file to be called Dockerfile.
    for entry in DockerfileParser(fileobj=io.BytesIO(path.read_bytes())).structure:
        instruction, value, line = entry["instruction"], entry["value"], entry["startline"] + 1
        if instruction == "COMMENT":
            continue
        try:
            if instruction == "FROM":
                stages.append(_stage(value, str(len(stages))))
            elif not stages:
                raise ValueError("comes before FROM")
            else:
                _take(stages[-1], instruction, value, line)
        except ValueError as error:
            raise ImageError(f"{path}:{line}: {instruction} {value}: {error}") from None
    if not stages:
        raise ImageError(f"{path}: no FROM")
    return stages


def _stage(value: str, number: str) -> Stage:
    words = value.split()
    base = _BASE.fullmatch(words[0])
    if base is None:
        raise ValueError("without a container engine an image is made from debian:SUITE-slim alone")
    if len(words) not in (1, 3):
        raise ValueError("expected FROM IMAGE [AS NAME]")
    return Stage(words[2] if len(words) == 3 else number, base["suite"], [], Configuration())


def _take(stage: Stage, instruction: str, value: str, line: int) -> None:
    before = stage.configuration
    changed = dict(vars(before))
    action: Run | Copy | None = None
    match instruction:
        case "ENV":
            changed["env"] = before.env | _pairs(value, before.env)
        case "LABEL":
            changed["labels"] = before.labels | _pairs(value, before.env)
        case "USER":
            changed["user"] = value
        case "WORKDIR":
            changed["workdir"] = str(PurePosixPath(before.workdir, value))
        case "ENTRYPOINT":
            changed["entrypoint"] = _argv(value)
        case "CMD":
            changed["command"] = _argv(value)
        case "RUN":
            action = Run(_argv(value))
        case "COPY":
            action = _copy(value, before.workdir)
        case _:
            raise ValueError("cannot be carried out without a container engine")
    stage.configuration = Configuration(**changed)
    if action is not None or instruction == "WORKDIR":
        stage.steps.append(Step(line, f"{instruction} {value}", action, stage.configuration))


def _pairs(value: str, env: dict[str, str]) -> dict[str, str]:
    # NAME=VALUE..., in which $NAME is what the environment had before.
    return dict(extract_key_values(env_replace=True, args={}, envs=dict(env), instruction_value=value))


def _argv(value: str) -> tuple[str, ...]:
    if value.startswith("--"):
        raise ValueError("options cannot be carried out without a container engine")
    if not value.startswith("["):
        return ("/bin/sh", "-c", value)
    words = json.loads(value)
    if not all(isinstance(word, str) for word in words):
        raise ValueError("expected a list of strings")
    return tuple(words)


def _copy(value: str, workdir: str) -> Copy:
    words, stage = value.split(), None
    while words and words[0].startswith("--"):
        option, _, stage = words.pop(0).partition("=")
        if option != "--from":
            raise ValueError(f"{option} cannot be carried out without a container engine")
    if len(words) < 2 or value.startswith("["):
        raise ValueError("expected COPY SOURCE... TARGET")
    *sources, target = words
    return Copy(tuple(sources), str(PurePosixPath(workdir, target)), target.endswith(("/", ".")), stage)
