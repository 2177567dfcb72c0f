"""What a run has changed on this machine, written down before it is changed.

``/run/ztprobe/RUN/journal.json`` names the owner (pid and start time, because pids
are reused), and every namespace, cgroup, process and machine-wide setting of the
run. `undo` takes all of it back, from any state and more than once; it serves both
the orderly end of a run and `clean_leftovers`, which applies it to runs whose owner
is dead. Things are found by exactly what was written down, never by a name's
likeness, so nobody else's namespaces or processes can be hit.

The entry comes first and the change second: after a SIGKILL in between, the entry
describes something that is not there, which undoing tolerates.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ztprobe import paths
from ztprobe.errors import RunDirError, UsageError, ZtprobeError
from ztprobe.kernelnet import netlink
from ztprobe.leases import notices
from ztprobe.pods.model import Pod
from ztprobe.process.identity import started_ticks
from ztprobe.process.interrupts import shielded
from ztprobe.rundir import files, state
from ztprobe.runtime.local import cgroups, mounts

__all__ = ("Journal", "appearing_whole", "clean_leftovers", "started_ticks", "undo")

_FILE = "journal.json"
_REAPED_S = 2.0
# Where namespaces are bound. Whoever first uses it has to mount it, and nobody else takes it away.
_NETNS_DIR = Path("/run/netns")
_NETNS_MARK = ".netns-directory-is-ours"

_Entries = dict[str, Any]
_numbers = itertools.count(1)  # of what this process makes


class Journal:
    """The journal of one live run."""

    def __init__(self, run_id: str) -> None:
        """Claim the name, under the lock: what is there without an owner is somebody's to clean.

        :raises UsageError: a run of that name is there already.
        :raises ZtprobeError: the state directory cannot be written, or others keep its lock.
        """
        self.directory = paths.STATE_DIR / run_id
        pid = os.getpid()
        self._entries: _Entries = {
            "owner": {"pid": pid, "started_ticks": started_ticks(pid)},
            "namespaces": [],
            "cgroups": [],
            "processes": [],
            "settings": [],
        }
        try:
            with state.locked():
                files.make_directory(self.directory, 0o700)
                self._write()
        except FileExistsError as error:
            raise UsageError(
                f"run {run_id} exists in {self.directory}: `ztprobe clean` removes dead runs"
            ) from error
        except OSError as error:
            raise ZtprobeError(f"{self.directory} cannot be written: {error.strerror}") from error

    def _write(self) -> None:
        files.write_whole(self.directory / _FILE, json.dumps(self._entries, indent=1).encode(), mode=0o600)

    def namespaces(self, names: Iterable[str]) -> None:
        """These network namespaces (names under /run/netns) are about to be made."""
        if not mounts.is_mount_point(_NETNS_DIR):
            files.append(paths.STATE_DIR / _NETNS_MARK, b"")
        self._entries["namespaces"] += list(names)
        self._write()

    def cgroups(self, tops: Iterable[Path]) -> None:
        """These cgroups, and whatever comes below them, are about to be made."""
        self._entries["cgroups"] += [str(top) for top in tops]
        self._write()

    def pods(self, pods: Iterable[Pod], log_dir: Path) -> None:
        """These pods run now and write their output there, for others to find (`ztprobe.pods.local`)."""
        self._entries["pods"] = [pod.as_dict() for pod in pods]
        self._entries["logs"] = [str(log_dir)]
        files.append(self.directory / notices.FILE, b"")  # what others put on these pods is told there
        self._write()

    def elsewhere(self, words: str | None) -> None:
        """This is about to be made where only its owner can undo it; None: it is there no more."""
        self._entries["elsewhere"] = words
        self._write()

    def scratch(self, directory: Path) -> None:
        """This directory will hold unfinished results: whatever undoes the run removes it.

        With it go the directories above that are not there yet, if nothing else is in them by then.
        """
        self._entries["scratch"] = str(directory)
        self._entries["above_scratch"] = [str(above) for above in directory.parents if not above.exists()]
        self._write()

    def process(self, pid: int) -> None:
        """This process was started."""
        with contextlib.suppress(OSError):  # it is gone already
            self._entries["processes"].append({"pid": pid, "started_ticks": started_ticks(pid)})
            self._write()

    @contextlib.contextmanager
    def setting(self, file: Path, value: str) -> Iterator[None]:
        """Have a machine-wide setting at ``value`` for the duration of the body.

        :raises OSError: it cannot be written.
        """
        entry = {"file": str(file), "old": file.read_text().strip(), "new": value}
        self._entries["settings"].append(entry)
        self._write()
        try:
            file.write_text(value)
            yield
        finally:
            _restore(entry)
            self._entries["settings"].remove(entry)
            self._write()

    def lasting_setting(self, file: Path, value: str, undo_value: str) -> None:
        """Write ``value`` now and ``undo_value`` at the end of the run."""
        self._entries["settings"].append({"file": str(file), "old": undo_value, "new": None})
        self._write()
        file.write_text(value)

    def close(self) -> list[str]:
        """Undo everything; says what was removed. Idempotent."""
        if not self.directory.exists():
            return []
        return undo(self.directory)


@contextlib.contextmanager
def appearing_whole(out: Path) -> Iterator[Path]:
    """A directory beside ``out`` for a command's results, which becomes ``out`` if all goes well.

    Nobody else can see or change it until then. Whatever else ends the command takes it away; after
    SIGKILL `clean_leftovers` does.

    :raises RunDirError: ``out`` is there and not empty, cannot be written, or others could replace it.
    """
    partial = files.unguessable(out, "partial")
    journal = Journal(f"job-{os.getpid()}-{next(_numbers)}")
    journal.scratch(partial)
    try:
        with _refusing(out), files.opened_directory(out.parent, make=0o777):
            files.make_directory(partial, 0o700)
        yield partial
        with _refusing(out):
            files.publish(partial, out)
    finally:
        with shielded():
            journal.close()  # and with it what is unfinished


@contextlib.contextmanager
def _refusing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirError(f"{out}: cannot be made: {error.strerror}; choose another --out") from error


def clean_leftovers(force: bool = False) -> list[str]:
    """Undo every run whose owner is dead, and say what was removed, one line each.

    :param force: runs whose owner is alive too; the owner itself is left alone.
    :raises PreflightError: another process keeps the lock, or the state directory is somebody else's.
    """
    if not state.trusted():
        return []
    report: list[str] = []
    with state.locked():
        for directory in sorted(
            p for p in paths.STATE_DIR.iterdir() if p.is_dir() and p.name != paths.LEASES
        ):
            entries = _read(directory)
            owner = entries.get("owner")
            if owner is not None and _alive(owner) and not force:
                continue
            report += [f"{directory.name}: {line}" for line in undo(directory)]
    state.leave()
    return report


def undo(directory: Path) -> list[str]:
    """Take back everything that the journal in ``directory`` names; says what was there.

    The journal goes last: interrupted, the next call starts again.
    """
    entries = _read(directory)
    report = []
    for process in entries.get("processes", ()):
        if _alive(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process["pid"], signal.SIGKILL)
                report.append(f"process {process['pid']} killed")
    for name in entries.get("cgroups", ()):
        if cgroups.remove(Path(name)):
            report.append(f"cgroup {name} removed")
    _await_end(entries.get("processes", ()))
    for name in entries.get("namespaces", ()):
        with contextlib.suppress(FileNotFoundError):
            netlink.remove_netns(name)
            report.append(f"network namespace {name} removed")
    for setting in entries.get("settings", ()):
        if _restore(setting):
            report.append(f"{setting['file']} set back to {setting['old']!r}")
    scratch = Path(entries.get("scratch", "/nonexistent"))
    if files.remove_tree(scratch):
        report.append(f"unfinished results in {scratch} removed")
    with contextlib.suppress(OSError):  # the run's results are in there, or something of others'
        for name in entries.get("above_scratch", ()):
            files.checked(Path(name).parent)
            Path(name).rmdir()
    if elsewhere := entries.get("elsewhere"):
        report.append(str(elsewhere))
    files.remove_tree(directory)
    _release_netns_directory()
    state.leave()
    return report


def _read(directory: Path) -> _Entries:
    try:
        entries = json.loads((directory / _FILE).read_text())
    except (OSError, ValueError):
        # Killed between making the directory and writing the first entry: nothing was changed.
        return {}
    return entries if isinstance(entries, dict) else {}


def _alive(process: _Entries) -> bool:
    try:
        return started_ticks(process["pid"]) == int(process["started_ticks"])
    except OSError:
        return False


def _await_end(processes: Iterable[_Entries]) -> None:
    # What was killed, or died with its owner, stays in the process list until its new parent
    # (the machine's init) has taken notice; it does no harm, so no longer than this.
    deadline = time.monotonic() + _REAPED_S
    while any(_alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.005)


def _restore(setting: _Entries) -> bool:
    # Only what still is as we set it: somebody may have decided otherwise meanwhile.
    file = Path(setting["file"])
    try:
        if setting["new"] is not None and file.read_text().split() != setting["new"].split():
            return False
        file.write_text(setting["old"])
    except OSError:
        return False
    return True


def _release_netns_directory() -> None:
    # Busy means that somebody uses it: then it stays, and so does the mark.
    mark = paths.STATE_DIR / _NETNS_MARK
    if not mark.exists():
        return
    with contextlib.suppress(OSError):
        if mounts.is_mount_point(_NETNS_DIR):
            mounts.umount(_NETNS_DIR)
        mark.unlink()
        _NETNS_DIR.rmdir()
