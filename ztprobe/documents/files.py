"""Files from outside, as bytes or text: regular ones alone, and no larger than the caller expects.

A FIFO or a device in a file's place would never end, or block whoever opens it, so the kind is
looked at before anything is read, and again once the file is open (it may have been exchanged).
Links are followed: data sets, profiles and run directories are often links.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ztprobe.documents.problem import DocumentError

__all__ = ("open_file", "read_bytes", "read_text", "sha256", "text_of")

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
}
_CHUNK_BYTES = 1 << 20


def open_file(path: Path) -> BinaryIO:
    """A regular file, open for reading; nothing here ever blocks.

    :raises DocumentError: it is not there, cannot be read, or is no regular file.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise _wrong_kind(mode)  # opening a device can already do something
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise DocumentError(f"cannot be read: {error.strerror}") from error
    except DocumentError:
        raise
    except ValueError as error:  # a NUL in the name
        raise DocumentError("cannot be read: no such name can exist") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _wrong_kind(mode)
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """All of a regular file.

    :raises DocumentError: it cannot be read, is no regular file, or holds more than ``most_bytes``.
    """
    with open_file(path) as stream:
        try:
            size_bytes = os.fstat(stream.fileno()).st_size
            _check_size(size_bytes, most_bytes)
            content = stream.read(size_bytes + 1)  # a buffer of all that is asked for is made first
        except OSError as error:
            raise DocumentError(f"cannot be read: {error.strerror}") from error
    if len(content) > size_bytes:
        raise DocumentError("changes while it is read")
    return content


def read_text(path: Path, most_bytes: int) -> str:
    """All of a regular file as text; a byte order mark is left out.

    :raises DocumentError: as `read_bytes`, or it is not UTF-8.
    """
    return text_of(read_bytes(path, most_bytes), most_bytes)


def text_of(content: bytes, most_bytes: int) -> str:
    """Bytes from outside as text; a byte order mark is left out.

    :raises DocumentError: they are more than ``most_bytes``, or no UTF-8.
    """
    _check_size(len(content), most_bytes)
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError("is not UTF-8 text", line) from error


def sha256(path: Path, most_bytes: int) -> str:
    """The SHA-256 of a regular file, in hexadecimal.

    :raises DocumentError: it cannot be read, is no regular file, or holds more than ``most_bytes``.
    """
    digest = hashlib.sha256()
    with open_file(path) as stream:
        try:
            _check_size(os.fstat(stream.fileno()).st_size, most_bytes)
            left_bytes = most_bytes
            while chunk := stream.read(_CHUNK_BYTES):
                left_bytes -= len(chunk)
                _check_size(most_bytes - left_bytes, most_bytes)
                digest.update(chunk)
        except OSError as error:
            raise DocumentError(f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _wrong_kind(mode: int) -> DocumentError:
    return DocumentError(f"is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, expected a regular file")


def _check_size(size_bytes: int, most_bytes: int) -> None:
    if size_bytes > most_bytes:
        most = f"{most_bytes >> 20} MiB" if most_bytes >= 1 << 20 else f"{most_bytes >> 10} KiB"
        raise DocumentError(f"is larger than {most}, the most that is read of such a file")
