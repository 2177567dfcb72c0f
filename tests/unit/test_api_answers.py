"""Whatever answers in an API's place: a list of objects, or one line, and soon."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ztprobe.errors import EnforcementError, PreflightError, UsageError
from ztprobe.kubernetes import api, pod_source
from ztprobe.kubernetes.pod_source import Cluster
from ztprobe.pods.cgroup import PodNamespaces
from ztprobe.pods.selectors import parse_selector

EVERYTHING = parse_selector("")
POD = {
    "metadata": {"name": "a", "namespace": "fl", "uid": "u", "labels": {"app": "fl-client"}},
    "spec": {"nodeName": "node-b"},
    "status": {"phase": "Running", "podIP": "10.0.0.7"},
}


class Raw:
    """A server that says the bytes it is given, and may take its time."""

    def __init__(self) -> None:
        self.answer = b""
        self.drip: tuple[bytes, float] | None = None  # what follows, again and again, and the pause between
        self.dripped_bytes = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._end.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    asked = connection.recv(65536)
                    # What is left unread of an HTTP request becomes a reset, which can overtake the answer.
                    while asked[:1].isupper() and b"\r\n\r\n" not in asked:
                        asked += connection.recv(65536) or b"\r\n\r\n"
                    connection.sendall(self.answer)
                    while self.drip and not self._end.wait(self.drip[1]):
                        connection.sendall(self.drip[0])
                        self.dripped_bytes += len(self.drip[0])
                except OSError:
                    continue

    def says(self, body: Any, *, status: int = 200, reason: str = "X", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        # Without "close" the next request may go to this connection, just before its end is seen.
        lines = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(content)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.answer = "\r\n".join([*lines, "", ""]).encode() + content

    def close(self) -> None:
        self._end.set()
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes whoever accepts
        self._socket.close()
        self._thread.join(5)


def kubeconfig(path: Path, monkeypatch: pytest.MonkeyPatch, server: str, **user: Any) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(pod_source, "find_namespaces", lambda: PodNamespaces(pods={}, others=()))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Raw]:
    raw = Raw()
    kubeconfig(tmp_path / "kubeconfig", monkeypatch, f"http://127.0.0.1:{raw.port}", token="t")
    yield raw
    raw.close()


def pods(items: Any, **metadata: Any) -> dict[str, Any]:
    return {"kind": "PodList", "metadata": metadata, "items": items}


def changed(part: str, key: str, value: Any) -> dict[str, Any]:
    return pods([POD | {part: {**POD[part], key: value}}])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "is a list, expected a list of objects"),
        (None, "is null, expected"),
        ("text", "is text, expected"),
        (7, "is a number, expected"),
        ({}, "items is missing, expected a list"),
        (b"{}x", "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff", "is not UTF-8 text"),
        (b"<html>log in</html>", "is not JSON"),
        (b'{"items": [], "items": []}', "'items' is given twice"),
        (b"[" * 5000, "is nested too deeply"),
        (b'{"items": [' + b"[" * 300 + b"]" * 300 + b"]}", "is nested more than 100 deep"),
        (b'{"items": NaN}', "NaN is no number"),
        (b'{"items": "\\ud800"}', "half of a surrogate pair"),
        ({"items": {}}, "items is an object, expected a list"),
        ({"items": "x"}, "items is text, expected a list"),
        (pods([None]), "items[0] is null, expected an object"),
        (pods([[]]), "items[0] is a list, expected an object"),
        (pods([POD, {}]), "items[1].metadata.name is missing"),
        (pods([POD | {"metadata": None}]), "items[0].metadata.name is missing"),
        (pods([POD | {"metadata": []}]), "items[0].metadata is a list, expected a mapping"),
        (pods([POD | {"spec": "x"}]), "items[0].spec is text"),
        (pods([POD | {"status": 3}]), "items[0].status is a number"),
        (changed("metadata", "name", 5), "metadata.name is 5, expected text"),
        (changed("metadata", "uid", None), "metadata.uid is missing"),
        (changed("metadata", "labels", []), "metadata.labels is [], expected a mapping of texts"),
        (changed("metadata", "labels", {"a": 1}), "metadata.labels is {'a': 1}, expected a mapping of texts"),
        (changed("metadata", "annotations", "x"), "metadata.annotations is 'x'"),
        (changed("spec", "hostNetwork", "no"), "spec.hostNetwork is 'no', expected true or false"),
        (changed("status", "podIPs", "x"), "status.podIPs is 'x', expected a list of addresses"),
        (changed("status", "podIPs", [None]), "status.podIPs is [None]"),
        (changed("status", "podIPs", [{"ip": 4}]), "status.podIPs is [{'ip': 4}]"),
        (changed("status", "podIP", 4), "status.podIP is 4, expected text"),
        (pods([POD], **{"continue": 5}), "metadata.continue is no text"),
    ],
)
def test_an_answer_that_is_no_list_of_pods_is_one_line(server: Raw, body: Any, said: str) -> None:
    server.says(body)
    with pytest.raises(PreflightError, match="answers, but not as a Kubernetes API does") as raised:
        Cluster("node-a").pods(EVERYTHING, "fl")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "body",
    [
        pods(None),
        {"items": None},
        pods([POD | {"status": None}]),
        pods([{key: value for key, value in POD.items() if key != "status"}]),
        pods([POD | {"spec": None}]),
        changed("metadata", "labels", None),
        changed("metadata", "deletionTimestamp", None),
        changed("status", "podIPs", None),
        changed("status", "phase", None),
        pods([POD], **{"continue": None}),
        {"items": [POD], "metadata": None},
    ],
)
def test_nulls_are_what_is_not_there(server: Raw, body: Any) -> None:
    server.says(body)
    found = api.Api().objects("pods", "fl")
    assert [item["metadata"]["name"] for item in found] == (["a"] if body.get("items") else [])
    assert all(item["spec"] is not None and item["status"] is not None for item in found)
    with contextlib.suppress(UsageError, EnforcementError):  # there is none, or it does not run
        Cluster("node-a").pods(EVERYTHING, "fl")


def test_a_list_that_never_ends_is_left(server: Raw) -> None:
    server.says(pods([POD], **{"continue": "again"}))
    with pytest.raises(PreflightError, match="does not come to the end of its list of pods"):
        Cluster("node-a").pods(EVERYTHING, "fl")


@pytest.mark.parametrize(
    "begin", [b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{", b"HTTP/1.1 200 OK\r\nX-A: b", b"HT"]
)
def test_an_answer_that_drips_has_an_end(server: Raw, begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_PAGE_S", 0.7)
    server.answer, server.drip = begin, (b" ", 0.05)
    began = time.monotonic()
    with pytest.raises(PreflightError, match="does not finish its answer within 1 s"):
        Cluster("node-a").pods(EVERYTHING, "fl")
    assert time.monotonic() - began < 3


def test_an_endless_answer_is_not_kept(server: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_MOST_BYTES", 3 << 20)
    server.answer, server.drip = b"HTTP/1.1 200 OK\r\n\r\n[", (b" " * (1 << 20), 0.0)
    with pytest.raises(PreflightError, match="answers with more than 3 MiB"):
        Cluster("node-a").pods(EVERYTHING, "fl")


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_what_is_no_http_is_one_line(server: Raw, answer: bytes) -> None:
    server.answer = answer
    with pytest.raises(PreflightError, match=r"the Kubernetes API at http://127\.0\.0\.1:") as raised:
        Cluster("node-a").pods(EVERYTHING, "fl")
    assert "\n" not in str(raised.value)


def refused(server: Raw) -> str:
    with pytest.raises(PreflightError) as raised:
        Cluster("node-a").pods(EVERYTHING, "fl")
    said = str(raised.value)
    assert said.isprintable() and len(said) < 1500
    return said


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 500, 503])
def test_of_a_refusal_without_end_the_beginning_is_read(server: Raw, status: int) -> None:
    head = f"HTTP/1.1 {status} Not Today\r\nContent-Type: text/html\r\nLocation: http://127.0.0.1:9/\r\n"
    server.answer = f"{head}Content-Length: {500 << 20}\r\n\r\n<html>".encode()
    server.drip = (b"x" * (1 << 20), 0.0)
    assert refused(server) == (
        f"the Kubernetes API failed to list pods in namespace fl ({status}): Not Today (with text/html of"
        " more than 64 KiB instead of a Kubernetes Status: does a proxy or another server answer?)"
    )
    assert server.dripped_bytes < 50 << 20  # what the sockets' buffers take, of 500 MiB


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (
            b"<html><h1>Log in</h1></html>",
            "text/html; charset=utf-8",
            "Not Today (with text/html instead of a",
        ),
        (b"{}", "application/json", "Not Today (with application/json instead of a"),
        (b"[" * 5000, "application/json", "Not Today (with application/json instead of a"),
        (b"\xff\x00", "a\x1b[2J\x9b", "Not Today (with a\\x1b[2j"),
        (b"Client sent an HTTP request\nto an HTTPS server.\n", "text/plain", "to an HTTPS server."),
        (b"\x1b]0;title\x07\x00\xff" * 5000, "text/plain", "characters left out"),
        (b"", "", "Not Today"),
    ],
)
def test_a_refusal_that_is_not_the_api_s_own_is_said_to_be_none(
    server: Raw, body: bytes, kind: str, said: str
) -> None:
    server.says(body, status=403, reason="Not Today", Content_Type=kind)
    message = refused(server)
    assert message.startswith("the Kubernetes API failed to list pods in namespace fl (403): ")
    assert said in message
    assert "missing: the verb" not in message  # who says no may know of no verbs


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_status_is_quoted_printable_and_short(server: Raw, status: int) -> None:
    server.says({"kind": "Status", "message": "\x1b[2Jno\n\n\u202epods" + "x" * 50_000}, status=status)
    assert "\\x1b[2Jno \\u202epodsxxx" in refused(server)


def test_words_beside_a_status_are_printable_and_short(server: Raw) -> None:
    server.says(b"", status=500, reason="\x1b[2J" + "x" * 50_000)
    assert "(500): \\x1b[2Jxxx" in refused(server)


def test_a_refusal_that_breaks_off_is_known_by_its_status(server: Raw) -> None:
    server.answer = b"HTTP/1.1 503 Busy\r\nContent-Length: 99\r\n\r\n{"
    assert refused(server).endswith("failed to list pods in namespace fl (503): Busy")


def test_a_refusal_does_not_unfold_in_memory(server: Raw) -> None:
    bomb = gzip.compress(bytes(200 << 20), 1)
    assert len(bomb) < 2 << 20
    server.says(bomb, status=500, reason="Busy", Content_Encoding="gzip", Content_Type="text/html")
    refused(server)  # imports what it takes
    tracemalloc.start()
    try:
        assert "(500): Busy (with text/html of more than 64 KiB" in refused(server)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_port_that_speaks_no_tls_is_one_line(
    server: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig(tmp_path / "kubeconfig", monkeypatch, f"https://127.0.0.1:{server.port}")
    server.answer = b"HTTP/1.1 400 X\r\n\r\n"
    said = refused(server)
    assert said.startswith(f"the Kubernetes API at https://127.0.0.1:{server.port} does not answer: ")
    assert "SSL" in said


def plugin(command: str, *args: str) -> dict[str, Any]:
    return {"apiVersion": "client.authentication.k8s.io/v1", "command": command, "args": list(args)}


@pytest.mark.parametrize(
    ("user", "said"),
    [
        (plugin("no-such-login"), "No such file or directory: 'no-such-login'"),
        (plugin("false"), "process returned 1"),
        (plugin("echo", "hello"), "failed to decode process output"),
        (plugin("sh", "-c", "echo out of tokens >&2; exit 3"), "process returned 3. out of tokens"),
    ],
)
def test_a_credential_plugin_that_fails_is_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], user: Any, said: str
) -> None:
    kubeconfig(tmp_path / "kubeconfig", monkeypatch, "http://127.0.0.1:9", exec=user)
    with pytest.raises(PreflightError) as raised:
        Cluster("node-a")
    path = tmp_path / "kubeconfig"
    assert str(raised.value).startswith(f"the credential plugin that {path} names (users: exec) failed: ")
    assert said in str(raised.value)
    assert capfd.readouterr() == ("", "")  # what the library prints goes through us


def runs(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_credential_plugin_that_does_not_stop_printing_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    pid_file = tmp_path / "pid"
    endless = plugin("sh", "-c", f"echo $$ >{pid_file}; exec yes $(printf %01000d 0) >&{stream}")
    kubeconfig(tmp_path / "kubeconfig", monkeypatch, "http://127.0.0.1:9", exec=endless)
    words = r"the credential plugin that .* \(users: exec\) failed: it prints more than 1 MiB; "
    tracemalloc.start()
    try:
        with pytest.raises(PreflightError, match=words):
            Cluster("node-a")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20  # with what the library itself takes
    finally:
        tracemalloc.stop()
    assert not runs(pid_file)


def test_a_token_that_another_kind_of_plugin_prints_is_limited_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"cmd-path": "/usr/bin/yes", "cmd-args": "x"}
    user = {"auth-provider": {"name": "gcp", "config": config}}
    kubeconfig(tmp_path / "kubeconfig", monkeypatch, "http://127.0.0.1:9", **user)
    with pytest.raises(PreflightError, match="log in with cannot be used: it prints more than 1 MiB"):
        Cluster("node-a")


def test_what_a_plugin_says_within_limits_logs_in(
    server: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "t" * 100_000},  # more than a pipe holds
    }
    (tmp_path / "credential").write_text(json.dumps(credential))
    user = plugin("cat", str(tmp_path / "credential"))
    kubeconfig(tmp_path / "kubeconfig", monkeypatch, f"http://127.0.0.1:{server.port}", exec=user)
    assert api.Api()._core.api_client.configuration.api_key["BearerToken"] == f"Bearer {'t' * 100_000}"


def test_a_login_that_does_not_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_LOG_IN_S", 0.5)
    pid_file = tmp_path / "pid"
    waiting = plugin("sh", "-c", f"echo $$ >{pid_file}; exec sleep 60")
    kubeconfig(tmp_path / "kubeconfig", monkeypatch, "http://127.0.0.1:9", exec=waiting)
    with pytest.raises(PreflightError, match=r"does not end within [01] s"):
        Cluster("node-a")
    assert not runs(pid_file)
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "fifo"))
    with pytest.raises(PreflightError, match="fifo"):
        Cluster("node-a")


@pytest.mark.parametrize(
    "text", ["", "[]", "text", "{}", "clusters: 3", "users: [1]", "current-context: [x]", "a: b: c"]
)
def test_what_is_no_kubeconfig_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    kubeconfig(tmp_path / "kubeconfig", monkeypatch, "http://127.0.0.1:9")
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(PreflightError, match="no access to a Kubernetes cluster: ") as raised:
        Cluster("node-a")
    assert "\n" not in str(raised.value)
