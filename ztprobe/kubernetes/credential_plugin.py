"""What a kubeconfig names to log in with (users: exec), run within limits.

The client library reads all that such a program prints before it looks at any of it, and leaves it running
when nobody waits for it any more. It starts programs through the name ``subprocess`` of its own modules;
`Subprocess` stands in for that there. A credential has some kilobytes.
"""

from __future__ import annotations

import contextlib
import selectors
import subprocess
import weakref
from typing import Any

__all__ = ("MOST_BYTES", "Subprocess", "TooMuch", "end_plugins")

MOST_BYTES = 1 << 20  # of each of its two streams
_CHUNK_BYTES = 1 << 16

_started: weakref.WeakSet[_Plugin] = weakref.WeakSet()


class TooMuch(Exception):
    """A plugin printed more than `MOST_BYTES`."""


class _Plugin(subprocess.Popen[str]):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _started.add(self)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """What it printed, once it has ended; None for a stream that is the terminal's.

        :raises TooMuch: it has printed too much, and is ended.
        """
        read: dict[Any, bytearray] = {}
        with selectors.DefaultSelector() as selector:
            for stream in filter(None, (self.stdout, self.stderr)):
                selector.register(stream, selectors.EVENT_READ)
                read[stream] = bytearray()
            while selector.get_map():
                for key, _ in selector.select():
                    chunk = key.fileobj.buffer.read1(_CHUNK_BYTES)  # type: ignore[union-attr]
                    if not chunk:
                        selector.unregister(key.fileobj)
                    read[key.fileobj] += chunk
                    if len(read[key.fileobj]) > MOST_BYTES:
                        self.end()
                        raise TooMuch(f"it prints more than {MOST_BYTES >> 20} MiB")
        self.wait()
        said = [
            read[stream].decode(errors="replace") if stream is not None else None
            for stream in (self.stdout, self.stderr)
        ]
        self._close()
        return said[0], said[1]

    def end(self) -> None:
        """Kill it; what it has started meets closed pipes."""
        self.kill()
        self._close()
        self.wait()

    def _close(self) -> None:
        for stream in filter(None, (self.stdout, self.stderr)):
            with contextlib.suppress(OSError, ValueError):
                stream.close()


class Subprocess:
    """As much of `subprocess` as the client library uses."""

    PIPE = subprocess.PIPE
    Popen = _Plugin


def end_plugins() -> None:
    """End those that still run, because nobody waits for them any more."""
    for plugin in list(_started):
        if plugin.poll() is None:
            with contextlib.suppress(OSError):
                plugin.kill()
                plugin.wait()
