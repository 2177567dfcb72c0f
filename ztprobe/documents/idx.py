"""IDX files (MNIST's format) as far as a command has to know that the workload can read them.

The header says how many bytes follow; a file of another length, or whose gzip stream is damaged, would
end a run after its pods stand. The content is not kept: the pods read it themselves.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from ztprobe.documents.files import open_file
from ztprobe.documents.problem import DocumentError

__all__ = ("check_idx",)

_UINT8 = 0x08
_MOST_DIMENSIONS = 4
_MOST_BYTES = 1 << 30  # MNIST's largest has 47 MB
_CHUNK_BYTES = 1 << 20


def check_idx(path: Path) -> tuple[int, ...]:
    """Read an IDX file of unsigned bytes, plain or ``.gz``, to its end; returns its dimensions.

    :raises DocumentError: it is no such file, is damaged, or is larger than 1 GiB.
    """
    with open_file(path) as stream:
        try:
            if path.suffix != ".gz":
                return _check(stream)
            with gzip.GzipFile(fileobj=stream) as unpacked:
                return _check(unpacked)
        except (OSError, EOFError, zlib.error) as error:
            words = " ".join(str(error).split())
            raise DocumentError(f"is damaged: {words[:100]}") from error


def _check(stream: BinaryIO | gzip.GzipFile) -> tuple[int, ...]:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UINT8 or not 1 <= head[3] <= _MOST_DIMENSIONS:
        found = head.hex(" ") or "nothing"
        raise DocumentError(f"is not an IDX file of unsigned bytes (it starts with {found})")
    sizes = stream.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise DocumentError("is not an IDX file: it ends within its header")
    shape = struct.unpack(f">{head[3]}I", sizes)
    announced = math.prod(shape)
    if announced > _MOST_BYTES:
        raise DocumentError(f"announces {announced} bytes, at most {_MOST_BYTES} are read")
    held = 0
    while held <= announced and (chunk := stream.read(_CHUNK_BYTES)):
        held += len(chunk)
    if held != announced:
        more = "more" if held > announced else str(held)
        raise DocumentError(f"announces {list(shape)} bytes and holds {more}")
    return shape
