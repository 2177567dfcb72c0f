"""What ztprobe says of a framework's limits and commands is what stands in its wheel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.frameworks.processes import environment
from ztprobe.frameworks.detection import ProcessFacts, framework_of
from ztprobe.frameworks.flower import LOG_STREAM_INTERVAL_NS, LOG_UPLOAD_INTERVAL_NS
from ztprobe.frameworks.timeouts import timeouts_of

SECOND = 1_000_000_000


def packages(name: str) -> Path:
    (found,) = environment(name).glob("lib/python3*/site-packages")
    return found


def number(file: Path, pattern: str) -> float:
    """The one number that the pattern finds."""
    found = set(re.findall(pattern, file.read_text()))
    assert len(found) == 1, (file, pattern, found)
    return float(found.pop())


PATTERNS = {
    "replies to the ServerApp": r"timeout: float = (\d+),",
    "life of a message": r"DEFAULT_TTL = (\d+)",
    "parts of a message that is pushed": r"OBJECT_PUSH_SESSION_TTL_SECONDS = (\d+)",
    "pulling a whole message": r"PULL_MAX_TIME = (\d+)",
    "HTTP silence": r"timeout: float = ([\d.]+),",
    "a task or an update": r'"communication_timeout", ([\d.]+)',
    "silence of a stream": r"DEFAULT_STREAMING_IDLE_TIMEOUT = ([\d.]+)",
    "heartbeat of a client": r"self.heartbeat_timeout = (\d+)",
}


@pytest.mark.parametrize(
    ("name", "framework", "version"),
    [
        ("flwr-1.42", "flower", "1.42.0"),
        ("flwr-1.38", "flower", "1.38.0"),
        ("nvflare-2.9", "nvflare", "2.9.0"),
    ],
)
def test_limits(name: str, framework: str, version: str) -> None:
    compared = 0
    for one in timeouts_of(framework, version):
        if one.name not in PATTERNS:  # of gRPC's own
            assert one.name == "gRPC keepalive"
            continue
        file = packages(name) / one.source.split(":")[0]
        assert one.limit_ns == number(file, PATTERNS[one.name]) * SECOND, one
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("name", ["flwr-1.42", "flwr-1.38"])
def test_flowers_log_comes_in_batches(name: str) -> None:
    constants = packages(name) / "flwr/common/constant.py"
    assert number(constants, r"LOG_UPLOAD_INTERVAL = ([\d.]+)") * SECOND == LOG_UPLOAD_INTERVAL_NS
    assert number(constants, r"LOG_STREAM_INTERVAL = ([\d.]+)") * SECOND == LOG_STREAM_INTERVAL_NS


@pytest.mark.parametrize(
    ("name", "framework"), [("flwr-1.42", "flower"), ("flwr-1.38", "flower"), ("nvflare-2.9", "nvflare")]
)
def test_every_command_of_a_framework_is_known(name: str, framework: str) -> None:
    (entry_points,) = packages(name).glob(f"{name.split('-')[0]}-*.dist-info/entry_points.txt")
    commands = re.findall(r"^([\w-]+) = ", entry_points.read_text(), re.MULTILINE)
    assert commands
    for command in commands:
        found = framework_of([ProcessFacts(pid=1, command=f"/usr/bin/python3 /opt/env/bin/{command} --help")])
        assert found.name == framework, command
