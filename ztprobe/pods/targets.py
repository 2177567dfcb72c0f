"""What ``--server``, ``--client`` and ``--hub`` name: processes, by number, command, place or labels. Pure.

========================  =========================================================================
``pid:4711``              one process
``cmd:PATTERN``           a regular expression, found anywhere in a command line (``pgrep -f``)
``cgroup:NAME``           a cgroup's path, a systemd unit or a container's id (12 digits or more)
``netns:NAME``            a network namespace, by its name below ``/run/netns`` or by a path
``app=fl-client``         pods of the local runtime, by labels
========================  =========================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ztprobe.errors import UsageError
from ztprobe.pods.selectors import Selector, parse_selector

__all__ = ("ROLES", "Kind", "Role", "Target", "in_cgroup", "parse_target")

Kind = Literal["pid", "cmd", "cgroup", "netns", "pods"]
Role = Literal["server", "client", "hub"]
ROLES: tuple[Role, ...] = ("server", "hub", "client")

_FORMS = "expected pid:N, cmd:PATTERN, cgroup:PATH or unit or container, netns:NAME, or labels like app=x"
_MOST_PIDS = 1 << 22  # PID_MAX_LIMIT
_NETNS_DIR = Path("/run/netns")
_CONTAINER = re.compile(r"[0-9a-f]{12,64}")
_UNIT = (".service", ".scope", ".slice")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One of them, as it was typed and as it is to be understood."""

    kind: Kind
    role: Role
    text: str  # as typed
    value: str  # without the kind

    @property
    def option(self) -> str:
        """For messages: the option and what was given to it."""
        return f"--{self.role} {self.text}"

    @property
    def pid(self) -> int:
        """Of a ``pid:``."""
        return int(self.value)

    @property
    def pattern(self) -> re.Pattern[str]:
        """Of a ``cmd:``."""
        return re.compile(self.value)

    @property
    def netns(self) -> Path:
        """Of a ``netns:``."""
        return Path(self.value) if "/" in self.value else _NETNS_DIR / self.value

    @property
    def selector(self) -> Selector:
        """Of labels."""
        return parse_selector(self.value)

    @property
    def own_name(self) -> str:
        """What whom it names can be called by it; empty: nothing that tells one from another."""
        if self.kind == "netns" and "/" not in self.value:
            return self.value
        if self.kind == "cgroup":
            last = PurePosixPath(self.value).name
            if _CONTAINER.fullmatch(last):
                return last[:12]
            return next((last.removesuffix(end) for end in _UNIT if last.endswith(end)), last)
        return ""


def parse_target(text: str, role: Role) -> Target:
    """Read one. :raises UsageError: it is none; says what was expected."""
    kind, colon, value = text.partition(":")
    if not colon or kind not in ("pid", "cmd", "cgroup", "netns"):
        return _labels(text, role)
    problem = ""
    if not value.strip():
        problem = "nothing behind the colon"
    elif "\0" in value:
        problem = "a NUL in it"
    elif kind == "pid" and not (value.isascii() and value.isdigit() and 0 < int(value) < _MOST_PIDS):
        problem = f"expected a process id from 1 to {_MOST_PIDS - 1}"
    elif kind == "cmd":
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            problem = f"no regular expression: {error}"
    elif kind == "cgroup" and ".." in PurePosixPath(value).parts:
        problem = "expected a path without '..'"
    if problem:
        raise UsageError(f"--{role} {text}: {problem}; {_FORMS}")
    return Target(kind=kind, role=role, text=text, value=value)  # type: ignore[arg-type]


def _labels(text: str, role: Role) -> Target:
    # A bare word is a label, too; here it is rather a process's name without cmd: before it.
    if not any(sign in text for sign in "=!("):
        raise UsageError(f"--{role} {text}: {_FORMS}")
    try:
        parse_selector(text)
    except UsageError as error:
        raise UsageError(f"--{role} {text}: {_FORMS}") from error
    return Target(kind="pods", role=role, text=text, value=text)


def in_cgroup(value: str, cgroups: Iterable[str]) -> bool:
    """Whether a process is in the cgroup that a ``cgroup:`` means, or below it.

    :param cgroups: its paths, one for each hierarchy.
    """
    if value.startswith("/"):
        wanted = PurePosixPath(value.removeprefix("/sys/fs/cgroup") or "/")
        return any(wanted == path or wanted in path.parents for path in map(PurePosixPath, cgroups))
    parts = {part for path in cgroups for part in PurePosixPath(path).parts}
    if "/" in value:  # a path's end, as `systemd-cgls` and `docker inspect` print them
        return any(f"/{value.rstrip('/')}/" in f"{path}/" for path in cgroups)
    if _CONTAINER.fullmatch(value):
        # ID, or RUNTIME-ID.scope with the systemd driver.
        ids = (part.removesuffix(".scope").rpartition("-")[2] for part in parts)
        return any(len(one) == 64 and one.startswith(value) for one in ids) or value in parts
    return value in parts or f"{value}.service" in parts
