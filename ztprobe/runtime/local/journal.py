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
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ztprobe import paths
from ztprobe.errors import UsageError, ZtprobeError
from ztprobe.kernelnet import netlink
from ztprobe.leases import notices
from ztprobe.pods.model import Pod
from ztprobe.process.identity import started_ticks
from ztprobe.process.interrupts import shielded
from ztprobe.runtime.local import cgroups, mounts

__all__ = ("Journal", "appearing_whole", "clean_leftovers", "locked", "started_ticks", "undo")

_FILE = "journal.json"
_REAPED_S = 2.0
_CLAIMS = 10
# Where namespaces are bound. Whoever first uses it has to mount it, and nobody else takes it away.
_NETNS_DIR = Path("/run/netns")
_NETNS_MARK = ".netns-directory-is-ours"

_Entries = dict[str, Any]


class Journal:
    """The journal of one live run."""

    def __init__(self, run_id: str) -> None:
        """Claim the name.

        :raises UsageError: a run of that name is there already.
        :raises ZtprobeError: the state directory cannot be written.
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
            self._claim()
            self._write()
        except FileExistsError as error:
            raise UsageError(
                f"run {run_id} exists in {self.directory}: `ztprobe clean` removes dead runs"
            ) from error
        except OSError as error:
            raise ZtprobeError(f"{self.directory} cannot be written: {error.strerror}") from error

    def _claim(self) -> None:
        for _ in range(_CLAIMS):
            paths.STATE_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Another run that ends takes the empty state directory with it, maybe right now.
            with contextlib.suppress(FileNotFoundError):
                self.directory.mkdir(mode=0o700)
                return
        self.directory.mkdir(mode=0o700)

    def _write(self) -> None:
        fresh = self.directory / f".{_FILE}"
        fresh.write_text(json.dumps(self._entries, indent=1))
        fresh.rename(self.directory / _FILE)

    def namespaces(self, names: Iterable[str]) -> None:
        """These network namespaces (names under /run/netns) are about to be made."""
        if not mounts.is_mount_point(_NETNS_DIR):
            (paths.STATE_DIR / _NETNS_MARK).touch()
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
        (self.directory / notices.FILE).touch()  # what others put on these pods is told there
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
    """A place beside ``out`` for a command's results, which are moved there if all goes well.

    Whatever else ends the command takes them away; after SIGKILL `clean_leftovers` does.

    :raises OSError: ``out`` is there and not empty, or cannot be written.
    """
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    journal = Journal(f"job-{os.getpid()}")
    journal.scratch(partial)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        with shielded():
            journal.close()  # and with it what is unfinished


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the machine-wide lock on runs' shared state (cleaning, machine-wide settings)."""
    paths.STATE_DIR.mkdir(mode=0o755, exist_ok=True)
    fd = os.open(paths.STATE_DIR, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def clean_leftovers(force: bool = False) -> list[str]:
    """Undo every run whose owner is dead, and say what was removed, one line each.

    :param force: runs whose owner is alive too; the owner itself is left alone.
    """
    if not paths.STATE_DIR.is_dir():
        return []
    report: list[str] = []
    with contextlib.suppress(FileNotFoundError), locked():  # gone: its last run has just ended
        for directory in sorted(
            p for p in paths.STATE_DIR.iterdir() if p.is_dir() and p.name != paths.LEASES
        ):
            entries = _read(directory)
            owner = entries.get("owner")
            if owner is not None and _alive(owner) and not force:
                continue
            report += [f"{directory.name}: {line}" for line in undo(directory)]
    with contextlib.suppress(OSError):
        paths.STATE_DIR.rmdir()
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
    if scratch.is_dir():
        shutil.rmtree(scratch, ignore_errors=True)
        report.append(f"unfinished results in {scratch} removed")
    with contextlib.suppress(OSError):  # the run's results are in there, or something of others'
        for name in entries.get("above_scratch", ()):
            Path(name).rmdir()
    shutil.rmtree(directory, ignore_errors=True)
    _release_netns_directory()
    with contextlib.suppress(OSError):
        paths.STATE_DIR.rmdir()
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
