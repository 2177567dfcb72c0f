"""The API server of the tests, seen as if it knew sidecars: what it would prune is kept in an annotation.

Debian's is 1.20, and init containers that go on (``restartPolicy: Always``), with probes, are known since
1.29. Between the command and the server, this takes these fields out of pods that are applied, keeps them in
an annotation of theirs, and puts them back into what is answered; and it says a newer version. All else is
the server's own. What a newer server decides besides (Pod Security) is not here.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.kernel.cluster import PORT, KubeNode
from ztprobe.kernelnet.netns import entered

__all__ = ("NEWER_PORT", "NewerApi", "sidecars_of")

NEWER_PORT = 6444
_ANNOTATION = "ztprobe.tests/sidecars"
_VERSION = {"major": "1", "minor": "29", "gitVersion": "v1.29.0"}
_NEW = (
    "restartPolicy",
    "startupProbe",
    "livenessProbe",
    "readinessProbe",
    "lifecycle",
)  # in an init container


def sidecars_of(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Names of a pod's containers that go on, and what the server does not know of each."""
    noted = (pod["metadata"].get("annotations") or {}).get(_ANNOTATION)
    return dict(json.loads(noted)) if noted else {}


class NewerApi:
    """A context manager; serves on the node's loopback."""

    def __init__(self, node: KubeNode) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                _serve(self)

            do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _serve

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificates = node.directory / "certificates"
        context.load_cert_chain(certificates / "apiserver.crt", certificates / "apiserver.key")
        self._node = node
        with entered(node.netns):
            self._server = ThreadingHTTPServer(("127.0.0.1", NEWER_PORT), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> NewerApi:
        with entered(self._node.netns):  # threads are where they were started
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _serve(request: BaseHTTPRequestHandler) -> None:
    body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
    if request.path.rstrip("/") == "/version":
        _answer(request, 200, "application/json", json.dumps(_VERSION).encode())
        return
    tls = ssl._create_unverified_context()
    headers = {name: value for name, value in request.headers.items() if name.lower() in _HEADERS}
    with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", PORT, context=tls, timeout=60)) as to:
        to.request(request.command, request.path, _without(body), headers)
        answer = to.getresponse()
        content = answer.read()
    kind = answer.getheader("Content-Type") or "application/json"
    _answer(request, answer.status, kind, _with(content))


_HEADERS = ("authorization", "content-type", "accept", "user-agent")


def _answer(request: BaseHTTPRequestHandler, status: int, kind: str, content: bytes) -> None:
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def _pods(value: Any) -> list[dict[str, Any]]:
    """Those in a message: it is one, or a list of them."""
    if not isinstance(value, dict):
        return []
    if value.get("kind") == "PodList":
        return list(value.get("items") or ())
    return [value] if value.get("kind") == "Pod" else []


def _without(body: bytes) -> bytes:
    try:
        value = json.loads(body)
    except ValueError:
        return body
    for pod in _pods(value):
        going_on = [one for one in pod["spec"].get("initContainers", ()) if one.get("restartPolicy")]
        if going_on:
            kept = {one["name"]: {key: one.pop(key) for key in _NEW if key in one} for one in going_on}
            noted = json.dumps(kept)
            pod["metadata"]["annotations"] = {**pod["metadata"].get("annotations", {}), _ANNOTATION: noted}
    return json.dumps(value).encode()


def _with(content: bytes) -> bytes:
    try:
        value = json.loads(content)
    except ValueError:
        return content
    for pod in _pods(value):
        for one in pod["spec"].get("initContainers", ()):
            one |= sidecars_of(pod).get(one["name"], {})
    return json.dumps(value).encode()
