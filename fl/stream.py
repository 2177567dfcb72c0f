"""A client's end of the stream: send a message, wait for its answer, say what went wrong.

At most one message is on its way out at a time, as each is answered before the next.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc

from fl import rpc
from fl.errors import TransportError

__all__ = ("ClientStream",)

# How often a client that cannot reach the server says so on stderr.
_NOTICE_S = 10.0


class ClientStream:
    """One channel with one Train stream on it. It connects on the first `send`, for as long as that takes."""

    def __init__(self, server: str, window_bytes: int, grpc_options: rpc.Options = ()) -> None:
        self._server = server
        options = rpc.with_given(rpc.CLIENT_OPTIONS + rpc.window_options(window_bytes), grpc_options)
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._on_sent: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self._passed_on = threading.Event()
        self._channel = grpc.insecure_channel(server, options=options)
        method = self._channel.stream_stream(rpc.METHOD_PATH)
        # wait_for_ready: a server that is not there yet is waited for, not an error.
        self._call: Any = method(self._requests(), wait_for_ready=True)
        self._ended = False
        self._call.add_done_callback(self._end)

    def _end(self, _call: Any) -> None:
        self._ended = True
        self._passed_on.set()

    def _requests(self) -> Iterator[bytes]:
        # gRPC's thread asks for the next message once it has passed the one before on to the transport.
        while (message := self._outbox.get()) is not None:
            yield message
            del message
            self._mark_sent()

    def _mark_sent(self) -> None:
        with self._lock:
            on_sent, self._on_sent = self._on_sent, None
            if on_sent is not None:
                on_sent()
        self._passed_on.set()

    def send(self, message: bytes, on_sent: Callable[[], object]) -> None:
        """Queue `message`; `on_sent` is called once, from another thread, when gRPC has passed it on."""
        self._on_sent = on_sent
        self._passed_on.clear()
        if self._ended:  # while we trained: nothing will be passed on, `receive` says why
            self._passed_on.set()
        self._outbox.put(message)

    def receive(self) -> bytes:
        """The server's next message, once what was sent last has gone out.

        :raises TransportError: the stream ended.
        """
        waited_s = 0.0
        while not self._passed_on.wait(_NOTICE_S):
            waited_s += _NOTICE_S
            print(
                f"fl-client: still trying to send to {self._server} after {waited_s:g} s",
                file=sys.stderr,
                flush=True,
            )
        try:
            raw: bytes = next(self._call)
        except StopIteration:
            raise TransportError(
                f"the server {self._server} closed the stream before the last round"
            ) from None
        except grpc.RpcError as error:
            details = " ".join(str(self._call.details()).split())
            raise TransportError(
                f"the stream to {self._server} broke: {self._call.code().name} ({details})"
            ) from error
        self._mark_sent()  # an answer proves it, should the stream have ended before gRPC's thread noticed
        return raw

    def finish_sending(self) -> None:
        """Half-close: the server ends the stream in its own time, while we are busy."""
        self._outbox.put(None)

    def close(self) -> None:
        """Close stream and connection without waiting for the other side."""
        self._outbox.put(None)
        self._channel.close()
