"""What carries messages of `tests.generic_direct`: gRPC and HTTP/1.1, the server's side and a client's."""

from __future__ import annotations

import contextlib
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any, Protocol

import grpc  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from tests.generic_direct import Rounds, Settings

_SERVICE, _HEAD = "generic.Direct", struct.Struct("!III")  # round, number of the client, part
NAME = "server.generic"  # in the certificate
_LISTENS_S = 20.0
_PIECE_BYTES = 256 << 10  # of a stream's messages
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


def _in_pieces(content: bytes) -> Iterator[bytes]:
    for at in range(0, len(content), _PIECE_BYTES):
        yield content[at : at + _PIECE_BYTES]


class GrpcServer:
    def __init__(self, settings: Settings, rounds: Rounds) -> None:
        self._rounds = rounds
        compression = grpc.Compression.Gzip if settings.compressed else grpc.Compression.NoCompression
        self._server = grpc.server(
            ThreadPoolExecutor(8 * settings.clients * settings.parts),
            options=_OPTIONS,
            compression=compression,
        )
        handlers = {
            "Get": grpc.unary_unary_rpc_method_handler(self._get),
            "Put": grpc.unary_unary_rpc_method_handler(self._put),
            "GetStream": grpc.unary_stream_rpc_method_handler(self._get_stream),
            "PutStream": grpc.stream_unary_rpc_method_handler(self._put_stream),
            "Talk": grpc.stream_stream_rpc_method_handler(self._talk),
            "Beat": grpc.stream_stream_rpc_method_handler(lambda beats, _: (beat for beat in beats)),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.port}"
        if settings.tls:
            certificate, key = (path.read_bytes() for path in settings.certificate)
            self._server.add_secure_port(address, grpc.ssl_server_credentials(((key, certificate),)))
        else:
            self._server.add_insecure_port(address)

    def start(self) -> None:
        self._server.start()

    def _get(self, request: bytes, _: Any) -> bytes:
        number, client, part = _HEAD.unpack_from(request)
        if self._rounds.settings.poll_s and not self._rounds.is_there(number):
            return b"not yet" + bytes(40)
        return self._model(number, client, part)

    def _model(self, number: int, client: int, part: int) -> bytes:
        return self._rounds.model(number, client, part)

    def _put(self, request: bytes, _: Any) -> bytes:
        self._rounds.take(*_HEAD.unpack_from(request))
        return b"taken"

    def _get_stream(self, request: bytes, _: Any) -> Iterator[bytes]:
        yield from _in_pieces(self._model(*_HEAD.unpack_from(request)))

    def _put_stream(self, requests: Iterator[bytes], context: Any) -> bytes:
        context.send_initial_metadata((("begun", "before the request has ended"),))
        first = next(requests)
        for _ in requests:
            pass
        self._rounds.take(*_HEAD.unpack_from(first))
        return b"taken"

    def _talk(self, requests: Iterator[bytes], _: Any) -> Iterator[bytes]:
        client = _HEAD.unpack_from(next(requests))[1]
        number = 1
        while model := self._model(number, client, 0):
            yield model
            self._rounds.take(*_HEAD.unpack_from(next(requests)))
            number += 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rounds: Rounds

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """/beat, or /ROUND/CLIENT/PART of a model, in chunks."""
        if self.path == "/beat":
            self._answer(200)
            return
        number, client, part = map(int, self.path.lstrip("/").split("/"))
        settings = self.rounds.settings
        if settings.poll_s and not self.rounds.is_there(number):
            self._answer(204)
            return
        model = self.rounds.model(number, client, part)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in _in_pieces(zlib.compress(model, 1) if settings.compressed and model else model):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def do_PUT(self) -> None:
        """/ROUND/CLIENT/PART of an update."""
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, _PIECE_BYTES)))
        self.rounds.take(*map(int, self.path.lstrip("/").split("/")))
        self._answer(200)


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, settings: Settings, rounds: Rounds) -> None:
        self.address_family = AF_INET6 if ":" in settings.host else AF_INET
        handler = type("Handler", (_Handler,), {"rounds": rounds})
        super().__init__((settings.host, settings.port), handler)
        if settings.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*settings.certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Link(Protocol):
    """A client's way to the server."""

    def fetch(self, number: int) -> bytes:
        """A round's model; empty: there are no more."""

    def give(self, number: int, update: bytes) -> None:
        """Its answer."""

    def beat(self) -> None:
        """Say that one is there."""


class GrpcLink:
    """Calls on one connection; with several parts, as many at once."""

    def __init__(self, settings: Settings, client: int) -> None:
        self._settings, self._client = settings, client
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        compression = grpc.Compression.Gzip if settings.compressed else None
        target, options = f"{host}:{settings.port}", list(_OPTIONS)
        if settings.tls:
            credentials = grpc.ssl_channel_credentials(settings.authority.read_bytes())
            options.append(("grpc.ssl_target_name_override", NAME))
            self._channel = grpc.secure_channel(target, credentials, options, compression)
        else:
            self._channel = grpc.insecure_channel(target, options, compression)
        grpc.channel_ready_future(self._channel).result(_LISTENS_S)
        self._pool = ThreadPoolExecutor(settings.parts)
        self._beats: list[bytes] = []
        self._beat = threading.Semaphore(0)
        if settings.beat_s:
            answers = self._channel.stream_stream(f"/{_SERVICE}/Beat")(self._all_beats())
            threading.Thread(target=lambda: list(answers), daemon=True).start()

    def _all_beats(self) -> Iterator[bytes]:
        while True:
            self._beat.acquire()
            yield bytes(80)

    def beat(self) -> None:
        self._beat.release()

    def _head(self, number: int, part: int) -> bytes:
        return _HEAD.pack(number, self._client, part)

    def _part(self, number: int, part: int) -> bytes:
        if self._settings.shape == "streams":
            call = self._channel.unary_stream(f"/{_SERVICE}/GetStream")
            return b"".join(call(self._head(number, part)))
        get = self._channel.unary_unary(f"/{_SERVICE}/Get")
        while (answer := get(self._head(number, part) + bytes(40))).startswith(b"not yet"):
            time.sleep(self._settings.poll_s)
        return bytes(answer)

    def fetch(self, number: int) -> bytes:
        return b"".join(self._pool.map(lambda part: self._part(number, part), range(self._settings.parts)))

    def give(self, number: int, update: bytes) -> None:
        size = -(-len(update) // self._settings.parts)

        def put(part: int) -> None:
            content = self._head(number, part) + update[part * size : (part + 1) * size]
            if self._settings.shape == "streams":
                self._channel.stream_unary(f"/{_SERVICE}/PutStream")(_in_pieces(content))
            else:
                self._channel.unary_unary(f"/{_SERVICE}/Put")(content)

        list(self._pool.map(put, range(self._settings.parts)))


class GrpcStreamLink(GrpcLink):
    """One stream that stays open for the whole run."""

    def __init__(self, settings: Settings, client: int) -> None:
        super().__init__(settings, client)
        self._ready = threading.Semaphore(0)
        self._next = self._head(0, 0)
        self._ready.release()
        self._models = self._channel.stream_stream(f"/{_SERVICE}/Talk")(self._said())

    def _said(self) -> Iterator[bytes]:
        while True:
            self._ready.acquire()
            yield self._next

    def fetch(self, number: int) -> bytes:
        return bytes(next(self._models, b""))

    def give(self, number: int, update: bytes) -> None:
        self._next = self._head(number, 0) + update
        self._ready.release()


class HttpLink:
    """Requests on as many connections as a message has parts; each is kept."""

    def __init__(self, settings: Settings, client: int) -> None:
        self._settings, self._client = settings, client
        self._pool = ThreadPoolExecutor(settings.parts)
        self._connections = [self._connected() for _ in range(settings.parts)]
        self._for_beats = self._connected() if settings.beat_s else None

    def _connected(self) -> HTTPConnection:
        give_up = time.monotonic() + _LISTENS_S
        while True:
            host, port = self._settings.host, self._settings.port
            connection = HTTPConnection(host, port)
            if self._settings.tls:
                context = ssl.create_default_context(cafile=str(self._settings.authority))
                context.check_hostname = False
                connection = HTTPSConnection(host, port, context=context)
            with contextlib.suppress(ConnectionRefusedError):
                connection.connect()
                return connection
            if time.monotonic() > give_up:
                raise TimeoutError("the server does not listen")
            time.sleep(0.05)

    def beat(self) -> None:
        assert self._for_beats is not None
        self._for_beats.request("GET", "/beat")
        self._for_beats.getresponse().read()

    def _part(self, number: int, part: int) -> bytes:
        connection = self._connections[part]
        while True:
            connection.request("GET", f"/{number}/{self._client}/{part}")
            answer = connection.getresponse()
            content = answer.read()
            if answer.status == 200:
                return zlib.decompress(content) if self._settings.compressed and content else content
            time.sleep(self._settings.poll_s)

    def fetch(self, number: int) -> bytes:
        first = self._part(number, 0)
        rest = range(1, self._settings.parts)
        return first + b"".join(self._pool.map(lambda part: self._part(number, part), rest))

    def give(self, number: int, update: bytes) -> None:
        size = -(-len(update) // self._settings.parts)

        def put(part: int) -> None:
            content = update[part * size : (part + 1) * size]
            if self._settings.compressed:
                content = zlib.compress(content, 1)
            self._connections[part].request("PUT", f"/{number}/{self._client}/{part}", content)
            self._connections[part].getresponse().read()

        list(self._pool.map(put, range(self._settings.parts)))
