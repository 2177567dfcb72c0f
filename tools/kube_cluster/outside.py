"""The node as the machine around it has it: begun, entered, and ended to the last of its processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.kube_cluster import cgroups
from tools.kube_cluster.components import write_configuration
from tools.kube_cluster.credentials import kubeconfig, write_credentials
from tools.kube_cluster.inside import OWN, READY
from tools.kube_cluster.places import (
    CGROUP,
    NODE,
    TREE,
    ClusterError,
    bin_dir,
    cache,
    images,
    missing_parts,
    node_dir,
)

__all__ = ("Node", "down", "found", "is_left", "turn", "up")

_UP_S = 240.0
_POLL_S = 0.1
_begun: list[subprocess.Popen[bytes]] = []  # by this process


@dataclass(frozen=True)
class Node:
    """A node that is up."""

    directory: Path
    pid: int  # of the one that keeps it up, in its namespaces
    took_s: float

    def command(self, words: Sequence[str], directory: Path = TREE) -> list[str]:
        """A command as one that runs on the node, in a directory of the machine."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--net", "--"]
        return [*enter, "env", f"--chdir={directory}", *words]

    def environment(self, user: str = "admin") -> dict[str, str]:
        """Of a command on the node."""
        path = f"{bin_dir()}:{os.environ['PATH']}:/usr/sbin:/sbin"
        own = {"KUBECONFIG": str(kubeconfig(self.directory, user)), "NODE_NAME": NODE, "PATH": path}
        return {**os.environ, **own}

    def component(self, name: str) -> int:
        """The process of one of its programs."""
        return int((self.directory / f"{name}.pid").read_text())


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """While it lasts, nobody else begins or ends a node.

    :raises ClusterError: somebody is at it.
    """
    cache().mkdir(mode=0o700, parents=True, exist_ok=True)
    with (cache() / "node.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ClusterError("somebody else is using the cluster of this machine") from error
        yield


def up(archives: Sequence[Path] | None = None) -> Node:
    """Begin a node; an earlier one is ended first. Call it in one's `turn`.

    :param archives: images that it is to have; None: the project's.
    :raises ClusterError: it does not come up; nothing is left of it then.
    """
    if os.geteuid() != 0:
        raise ClusterError("a node is root's: sudo")
    if missing := missing_parts():
        raise ClusterError(f"missing: {'; '.join(missing)}")
    down()
    try:
        return _begin(images() if archives is None else archives)
    except BaseException:
        down()
        raise


def _begin(archives: Sequence[Path]) -> Node:
    directory = node_dir()
    directory.mkdir(mode=0o755)
    for name in OWN:
        (directory / name).mkdir(mode=0o755)
    write_credentials(directory)
    write_configuration(directory)
    cgroups.make()
    joined = " ".join(map(str, cgroups.own_services()))
    script = f'for group in {joined}; do echo $$ >"$group"; done; exec "$@"'
    command = ["sh", "-ec", script, "sh", "unshare", "--net", "--mount", "--propagation", "private"]
    command += [sys.executable, "-m", "tools.kube_cluster.inside", str(directory), *map(str, archives)]
    # In a session of its own: Ctrl-C is for whoever began it.
    process = subprocess.Popen(command, cwd=TREE, stdin=subprocess.DEVNULL, start_new_session=True)
    _begun.append(process)
    until_s = time.monotonic() + _UP_S
    while (made := found()) is None:
        if process.poll() is not None:
            raise ClusterError(f"the node has ended (status {process.returncode}): {_last_words(directory)}")
        if time.monotonic() > until_s:
            raise ClusterError(f"the node is not up after {_UP_S:.0f} s: {_last_words(directory)}")
        time.sleep(_POLL_S)
    return made


def _last_words(directory: Path) -> str:
    """Where to look: what each program said last is kept beside the node's directory, which goes."""
    kept = cache() / "last-logs"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for log in (directory / "log").glob("*.log"):
        shutil.copy(log, kept)
    return f"see {kept}"


def found() -> Node | None:
    """The node that is up, if there is one."""
    try:
        said: Mapping[str, object] = json.loads((node_dir() / READY).read_text())
    except (OSError, ValueError):
        return None
    pid = int(str(said["pid"]))
    if pid not in cgroups.processes():
        return None
    return Node(node_dir(), pid, float(str(said["took_s"])))


def is_left() -> bool:
    """Whether anything of a node is on the machine."""
    return node_dir().exists() or any((one / CGROUP).exists() for one in cgroups.hierarchies())


def down() -> bool:
    """End the node, or what is left of one; its mounts and links go with its last process.

    :returns: whether there was anything.
    :raises ClusterError: something does not go.
    """
    was_there = is_left()
    cgroups.end_processes()
    for process in _begun:  # ours to bury
        process.wait()
    _begun.clear()
    cgroups.remove()
    if node_dir().exists():
        shutil.rmtree(node_dir())
    return was_there
