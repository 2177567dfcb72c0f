"""A framework is known by what its processes run, have loaded and say, and by nothing else."""

from __future__ import annotations

import pytest

from ztprobe.frameworks.detection import ProcessFacts, framework_of

VENV = "/home/user/env"


def process(command: str, *files: str) -> ProcessFacts:
    return ProcessFacts(pid=812, command=command, files=frozenset(files))


@pytest.mark.parametrize(
    ("command", "framework"),
    [
        (f"{VENV}/bin/python3 {VENV}/bin/flower-superlink --insecure --port 8000", "flower"),
        (f"{VENV}/bin/python3 -u {VENV}/bin/flwr-clientapp --token 7", "flower"),
        ("flower-supernode --superlink 10.0.0.1:8000", "flower"),
        ("python3.12 -X dev -m flwr.server.app", "flower"),
        ("python3 -u -m nvflare.private.fed.app.server.server_train -m /tmp/ws", "nvflare"),
        (f"{VENV}/bin/python {VENV}/bin/nvflare simulator job", "nvflare"),
        # What only speaks of one is none.
        ("vim flower-superlink.md", "generic"),
        ("grep -r flwr .", "generic"),
        ("python3 train.py --backend flwr -m nvflare.x", "generic"),
        ("python3 -c import flwr", "generic"),
        ("", "generic"),
    ],
)
def test_commands(command: str, framework: str) -> None:
    found = framework_of([process(command)])
    assert found.name == framework
    assert bool(found.evidence) == (framework != "generic")


def test_files_that_are_loaded() -> None:
    loaded = f"{VENV}/lib/python3.11/site-packages/nvflare/libs/x.so"
    found = framework_of([process("python3 server.py", loaded, "/usr/lib/libc.so.6")])
    assert found.name == "nvflare" and "812" in found.evidence[0] and loaded in found.evidence[0]
    assert framework_of([process("python3 server.py", "/home/user/flwr/notes.txt")]).name == "generic"


def test_what_is_said_on_the_wire() -> None:
    http = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: 10.98.0.1:8000\r\n"
    grpc = (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x24\4\0\0\0\0\0@\x05:path\x1d/flwr.proto.Fleet/PullMessages@"
    )
    for head, word in ((http, "/v1/fleet/pull-messages"), (grpc, "/flwr.proto.Fleet/PullMessages")):
        found = framework_of([process("python3 app.py")], [b"", b"\x16\x03\x01", head, head])
        assert found.name == "flower"
        assert found.evidence == (f"2 requests for {word}",)
    for head in (b"POST /v1/fleetwood/mac HTTP/1.1", b"GET /api HTTP/1.1", b"/streamer.Streamer/Stream"):
        assert framework_of([process("python3 app.py")], [head]).name == "generic"


def test_the_version_is_of_what_runs() -> None:
    installed = ["flwr-1.42.0.dist-info", "numpy-2.4.6.dist-info", "nvflare-2.9.0.dist-info"]
    assert framework_of([process("flower-superlink")], installed=installed).version == "1.42.0"
    assert framework_of([process("python3 app.py")], installed=installed).name == "generic"
    # Two environments with different ones: nothing is said.
    assert framework_of([process("flwr")], installed=[*installed, "flwr-1.38.0.dist-info"]).version is None


def test_evidence_is_printable() -> None:
    found = framework_of([process("python3 -m flwr.\x1b[31m" + "x" * 500)])
    assert all(text.isprintable() and len(text) < 200 for text in found.evidence)
