"""A small HTTP server that nobody who may connect can stop or make grow.

On the loopback that is every user of the machine, elsewhere whoever reaches the port, before any
certificate is asked for. So connections are answered in threads of their own, few at once, each within a
time, the TLS handshake included; who finds no place is turned away.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

__all__ = ("HttpServer",)

_AT_ONCE = 16
_WITHIN_S = 10.0


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class HttpServer(ThreadingMixIn, WSGIServer):
    """Serves a WSGI application until `close`.

    :param context: of a server; None: in clear.
    :raises OSError: it cannot listen there.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, host: str, port: int, application: Callable[..., Any], context: ssl.SSLContext | None = None
    ) -> None:
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host).version == 6:
                self.address_family = socket.AF_INET6
        super().__init__((host, port), _Silent)
        self.set_app(application)
        self._context = context
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        """See `socketserver`: a thread, if there is one left."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See `socketserver`."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """See `socketserver`."""
        if self._context is not None:
            request = self._context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        end = threading.Timer(_WITHIN_S, _hang_up, [request])
        end.start()
        try:
            with contextlib.closing(request):
                if isinstance(request, ssl.SSLSocket):
                    request.do_handshake()
                super().finish_request(request, client_address)
        finally:
            end.cancel()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: whoever broke off knows."""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError):
        connection.shutdown(socket.SHUT_RDWR)
