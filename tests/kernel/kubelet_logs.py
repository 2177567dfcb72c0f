"""Containers' logs as kubelet serves them to the API server: HTTPS, followed, since a time."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from tests.kernel.cluster import NODE, KubeNode
from ztprobe.kernelnet.netns import entered

__all__ = ("LogServer",)

_ADDRESS, _PORT = "10.98.0.1", 10250
_WORDS = re.compile(rb"(?P<time>\S+) (?:stdout|stderr) [FP] (?P<text>.*)", re.DOTALL)


class LogServer:
    """A context manager; the nodes are known to the API while it serves.

    :param logs: where they are, as ``/var/log/pods`` has them.
    :param nodes: whose logs these are.
    """

    def __init__(self, node: KubeNode, logs: Path, nodes: tuple[str, ...] = (NODE,)) -> None:
        self._node, self.logs, self._nodes = node, logs, nodes
        self.breaks = 0  # streams that are to be cut in the middle
        self.streams = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):  # who asked has gone
                    outer.serve(self)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        certificate, key = node.directory / "kubelet.crt", node.directory / "kubelet.key"
        subprocess.run(
            [
                *(
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-nodes",
                ),
                *("-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=kubelet"),
            ],
            check=True,
            capture_output=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        with entered(node.netns):
            self._server = ThreadingHTTPServer((_ADDRESS, _PORT), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> LogServer:
        self._thread.start()
        status = {
            "addresses": [{"type": "InternalIP", "address": _ADDRESS}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": _PORT}},
        }
        for name in self._nodes:
            self._node.call("POST", "/api/v1/nodes", {"metadata": {"name": name}})
            self._node.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": status})
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._nodes:
            self._node.call("DELETE", f"/api/v1/nodes/{name}")
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """One request: ``/containerLogs/NAMESPACE/POD/CONTAINER``."""
        url = urlparse(request.path)
        namespace, pod, container = url.path.split("/")[2:5]
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        since = datetime.fromtimestamp(0, UTC)
        if "sinceSeconds" in asked:
            since = datetime.now(UTC) - timedelta(seconds=int(asked["sinceSeconds"]))
        assert asked["timestamps"] == "true"
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        told = 0
        for line in self._lines(namespace, pod, container, follow=asked.get("follow") == "true"):
            words = _WORDS.match(line)
            assert words is not None
            if datetime.fromisoformat(words["time"].decode()[:26]).replace(tzinfo=UTC) < since:
                continue
            text = words["time"] + b" " + words["text"]
            request.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
            request.wfile.flush()
            told += 1
            if told > 2 and self.breaks:
                self.breaks -= 1
                request.connection.shutdown(socket.SHUT_RDWR)
                return
        request.wfile.write(b"0\r\n\r\n")

    def _lines(self, namespace: str, pod: str, container: str, *, follow: bool) -> Iterator[bytes]:
        (directory,) = self.logs.glob(f"{namespace}_{pod}_*/{container}")
        self.streams += follow
        with (directory / "0.log").open("rb") as file:
            part = b""
            while directory.exists():
                while piece := file.readline():
                    part += piece
                    if part.endswith(b"\n"):
                        yield part
                        part = b""
                if not follow:
                    return
                time.sleep(0.02)
