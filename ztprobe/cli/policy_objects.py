"""The objects that ``ztprobe policy`` is about, from files, and the connection, from words."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ztprobe.errors import UsageError
from ztprobe.printable import printable

if TYPE_CHECKING:
    from ztprobe.policy.model import Objects

__all__ = ("PORT", "is_large", "read_files", "working")

_STDIN = "-"
_LARGE_CHARACTERS = 2_000_000
_LARGE_OBJECTS = 2_000


class _Port(click.ParamType[tuple[int, str]]):
    """``NUMBER/PROTOCOL``, as 8080/TCP."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """(number, protocol)."""
        if isinstance(value, tuple):
            return value
        number, _, protocol = str(value).partition("/")
        protocol = protocol.upper() or "TCP"
        if not (number.isascii() and number.isdigit()) or not 0 < int(number) < 65536:
            self.fail(f"{value!r} is not a port, expected like 8080/TCP.", param, ctx)
        if protocol not in ("TCP", "UDP", "SCTP"):
            self.fail(f"{value!r} is of no known protocol, expected TCP, UDP or SCTP.", param, ctx)
        return int(number), protocol


PORT = _Port()


def read_files(paths: Sequence[str], namespace: str | None) -> Objects:
    """The objects of files, ``-`` for standard input.

    :param namespace: of objects that name none; None: default, and the user is told.

    :raises UsageError: a file cannot be read, or what is in it is wrong; names file, line and field.
    """
    from ztprobe.policy.manifests import read_documents
    from ztprobe.policy.objects import read_objects

    if paths.count(_STDIN) > 1:
        raise UsageError("-f -: standard input can be read once only")
    collecting = gc.isenabled()
    gc.disable()  # it would look through millions of new objects again and again, and none of them is garbage
    try:
        texts = [(_text(path, shown), shown) for path, shown in zip(paths, _shown(paths), strict=True)]
        with working("reading", sum(len(text) for text, _ in texts) > _LARGE_CHARACTERS):
            documents = [document for text, shown in texts for document in read_documents(text, shown)]
            if not documents:
                raise UsageError(f"{', '.join(paths)}: expected Kubernetes objects, found none")
            objects = read_objects(documents, namespace or "default")
    finally:
        if collecting:
            gc.enable()
    if objects.unplaced and namespace is None:
        names = ", ".join(objects.unplaced[:3]) + (", ..." if len(objects.unplaced) > 3 else "")
        some = f"{len(objects.unplaced)} objects name" if len(objects.unplaced) > 1 else "1 object names"
        note = f"note: {some} no namespace, taken to be in `default` (-n says which): {names}"
        click.echo(printable(note), err=True)
    return objects


@contextlib.contextmanager
def working(what: str, long: bool) -> Iterator[None]:
    """Say on standard error that something is at work, where that takes a while."""
    if not long:
        yield
        return
    from ztprobe.progress import open_progress

    with open_progress() as progress:
        progress.stage(what)
        yield
        progress.done()


def is_large(objects: Objects) -> bool:
    """Whether it takes a while to look at all of them."""
    return len(objects.pods) + len(objects.policies) > _LARGE_OBJECTS


def _shown(paths: Sequence[str]) -> list[str]:
    return ["standard input" if path == _STDIN else path for path in paths]


def _text(path: str, shown: str) -> str:
    from ztprobe.documents.files import read_text, text_of
    from ztprobe.documents.problem import DocumentError
    from ztprobe.policy.manifests import MOST_BYTES

    try:
        if path != _STDIN:
            return read_text(Path(path), MOST_BYTES)
        content = sys.stdin.buffer.read(MOST_BYTES + 1)
        return text_of(content, MOST_BYTES)
    except OSError as error:
        raise UsageError(f"{shown}: cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise UsageError(error.at(shown)) from error
