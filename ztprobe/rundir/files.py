"""Files and directories that we make, often as root, where others may have been before us.

Whoever may write to a directory can put a link where we are about to write, or swap what we have
made. Three rules keep both out, and every file that a command makes goes through here:

- A directory is reached one component at a time, from ``/``. As root, each of them has to belong to
  root or to the user who called sudo, and nobody else may rename what is in it: it is not writable by
  others, or it is sticky as /tmp is. A link on the way has to belong to one of them too.
- New things have names that nobody can guess and are made exclusively (O_EXCL, O_NOFOLLOW), relative
  to the handle of a directory that was reached like that.
- What is to appear whole is written beside its place, synced and renamed, which replaces a link that
  stands in the place and never follows it.

Below a directory of ours, paths are as good as handles: nobody else can change what they mean.
Other users may put their files where they like; the first rule is for root alone.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = (
    "append",
    "checked",
    "make_directory",
    "open_lock",
    "opened_directory",
    "publish",
    "remove_tree",
    "unguessable",
    "write_whole",
)

_MOST_LINKS = 40  # as the kernel has it
_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST_STEM = 40  # characters of a name that another is made of: 255 bytes are all there are


def unguessable(path: Path, kind: str) -> Path:
    """A hidden name beside ``path``, e.g. ``.out.partial-5f2c…``; nothing is made."""
    return path.with_name(f".{path.name[:_LONGEST_STEM]}.{kind}-{secrets.token_hex(8)}")


@contextlib.contextmanager
def opened_directory(path: Path, *, make: int | None = None) -> Iterator[int]:
    """A handle on a directory, for the duration of the body.

    :param make: the mode of directories that are missing on the way and are made (None: none are).
    :raises OSError: it cannot be reached. PermissionError also where somebody else could replace what
        is in it, with words that say who.
    """
    handle = _reach(path, make)
    try:
        yield handle
    finally:
        os.close(handle)


def checked(path: Path) -> Path:
    """``path``, if it is a directory in which only we can replace things.

    :raises OSError: see `opened_directory`.
    """
    with opened_directory(path):
        return path


def make_directory(path: Path, mode: int = 0o777, *, parents: bool = False) -> None:
    """Make a directory that was not there before.

    :raises OSError: it is there (FileExistsError), or see `opened_directory`.
    """
    with _named(path), opened_directory(path.parent, make=mode if parents else None) as above:
        os.mkdir(path.name, mode, dir_fd=above)


def write_whole(
    path: Path, content: bytes, *, mode: int = 0o666, make: int | None = None, durable: bool = False
) -> None:
    """Put ``content`` at ``path``, whole or not at all.

    :param mode: of the file, less the umask.
    :param make: the mode of missing directories above it (None: they are not made).
    :param durable: wait until it is on the disk, so that it is there after a power cut too.
    :raises OSError: see `opened_directory`, or the disk refuses.
    """
    with _named(path), opened_directory(path.parent, make=make) as above:
        beside = unguessable(path, "tmp").name
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, mode, dir_fd=above)
        try:
            with open(descriptor, "wb") as stream:
                stream.write(content)
                if durable:
                    stream.flush()
                    os.fsync(descriptor)
            os.rename(beside, path.name, src_dir_fd=above, dst_dir_fd=above)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside, dir_fd=above)
            raise
        if durable:
            with contextlib.suppress(OSError):  # some file systems cannot, and then need not
                os.fsync(above)


def append(path: Path, content: bytes, *, make: bool = True) -> None:
    """Add to a regular file; a link in its place is refused.

    :param make: the file, if it is not there.
    :raises OSError: see `opened_directory`, or the disk refuses.
    """
    with _named(path), opened_directory(path.parent) as above:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | _FILE | (os.O_CREAT if make else 0)
        descriptor = os.open(path.name, flags, 0o666, dir_fd=above)
        with open(descriptor, "ab") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "is not a regular file")
            stream.write(content)


def publish(unfinished: Path, path: Path, mode: int = 0o777) -> None:
    """Give a finished directory of ours its name; an empty directory may stand there.

    :param mode: that it gets, less the umask.
    :raises OSError: something is in the way, or see `opened_directory`.
    """
    with _named(path), opened_directory(path.parent) as above:
        with opened_directory(unfinished) as made:
            os.fchmod(made, mode & ~_umask())
        os.rename(unfinished.name, path.name, src_dir_fd=above, dst_dir_fd=above)


def open_lock(name: str, directory: int) -> int:
    """A file to hold a lock on (flock), in a directory that `opened_directory` gave; it is made if missing.

    Its user alone can open it: whatever anybody may open, a directory included, anybody may lock.

    :raises OSError: the disk refuses; PermissionError: what stands there can be opened by others.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | _FILE
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077:
        return descriptor
    os.close(descriptor)
    raise PermissionError(errno.EPERM, f"{name} in there is not ours alone: remove it")


def remove_tree(path: Path) -> bool:
    """Remove a directory and all that is in it, never through a link; says whether one was there and went."""
    try:
        with opened_directory(path.parent) as above:
            if not stat.S_ISDIR(os.stat(path.name, dir_fd=above, follow_symlinks=False).st_mode):
                return False
            shutil.rmtree(path.name, ignore_errors=True, dir_fd=above)
    except OSError:
        return False
    return not path.exists()


_FILE = os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    # What failed relative to a handle would be called by its last name alone.
    try:
        yield
    except OSError as error:
        _call(error, path)
        raise


def _call(error: OSError, path: Path) -> None:
    if error.filename2 is not None:  # of a rename
        del error.filename2
    error.filename = str(path)


def _umask() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def _reach(path: Path, make: int | None) -> int:
    waiting = [*reversed(path.absolute().parts[1:])]
    at, here, links = os.open("/", os.O_PATH | _DIRECTORY), Path("/"), 0
    try:
        while True:
            _refuse_foreign(os.fstat(at), here)
            if not waiting:
                return os.open(".", os.O_RDONLY | _DIRECTORY, dir_fd=at)
            name = waiting.pop()
            try:
                found = os.open(name, os.O_PATH | _FILE, dir_fd=at)
            except FileNotFoundError:
                if make is None:
                    raise
                with contextlib.suppress(FileExistsError):  # then it is looked at like any other
                    os.mkdir(name, make, dir_fd=at)
                found = os.open(name, os.O_PATH | _FILE, dir_fd=at)
            try:
                status = os.fstat(found)
                if stat.S_ISDIR(status.st_mode):
                    at, found, here = found, at, here.parent if name == ".." else here / name
                elif stat.S_ISLNK(status.st_mode):
                    links += 1
                    if links > _MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    _refuse_foreign_link(status, here / name)
                    target = Path(os.readlink("", dir_fd=found))
                    waiting += [*reversed(target.parts[1:] if target.is_absolute() else target.parts)]
                    if target.is_absolute():
                        os.close(at)
                        at, here = os.open("/", os.O_PATH | _DIRECTORY), Path("/")
                else:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            finally:
                os.close(found)
    except OSError as error:
        _call(error, path)
        raise
    finally:
        os.close(at)


def _trusted() -> tuple[set[int], set[int]] | None:
    """Users and groups who may do as root does anyway; None: we are not root, and nobody is kept out."""
    if os.geteuid() != 0:
        return None
    # sudo sets these; who may call it for ztprobe runs programs of their choice as root (the workload).
    sudo = [os.environ.get(name, "") for name in ("SUDO_UID", "SUDO_GID")]
    user, group = (int(text) if text.isascii() and text.isdigit() else 0 for text in sudo)
    return {0, user}, {0, group}


def _refuse_foreign(status: os.stat_result, here: Path) -> None:
    trusted = _trusted()
    if trusted is None:
        return
    users, groups = trusted
    if status.st_uid not in users:
        who = f"belongs to {_user(status.st_uid)}"
    elif status.st_mode & stat.S_ISVTX:
        return
    elif status.st_mode & stat.S_IWOTH:
        who = "is writable by everyone"
    elif status.st_mode & stat.S_IWGRP and status.st_gid not in groups:
        who = f"is writable by the group {_group(status.st_gid)}"
    else:
        return
    raise PermissionError(
        errno.EPERM, f"{here} {who}, who could replace what root writes there; use a directory of your own"
    )


def _refuse_foreign_link(status: os.stat_result, here: Path) -> None:
    trusted = _trusted()
    if trusted is not None and status.st_uid not in trusted[0]:
        raise PermissionError(
            errno.EPERM, f"{here} is a link that belongs to {_user(status.st_uid)}; root does not follow it"
        )


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name} (user {number})"
    except KeyError:
        return f"user {number}"


def _group(number: int) -> str:
    try:
        return f"{grp.getgrgid(number).gr_name} ({number})"
    except KeyError:
        return str(number)
