"""An agent that does not answer: waited for, unless it is known that it never will."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from ztprobe.agent.service.client import Connection
from ztprobe.errors import PreflightError


@pytest.fixture
def address() -> Iterator[str]:
    """Where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def test_one_that_was_removed_is_not_waited_for(address: str) -> None:
    said = [None, "its pod ztprobe/agent-x has been removed"]
    begun_s = time.monotonic()
    connection = Connection(address, None, patience_s=60, why_gone=lambda: said.pop(0))
    with pytest.raises(
        PreflightError, match=rf"{address} does not answer: its pod ztprobe/agent-x has been removed"
    ):
        connection.status()
    assert said == []
    assert time.monotonic() - begun_s < 30
    connection.close()


def test_one_that_was_given_up_is_not_waited_for_again(address: str) -> None:
    connection = Connection(address, None, patience_s=1.0)
    began_s = time.monotonic()
    with pytest.raises(PreflightError, match="does not answer, or not to a certificate like ours"):
        connection.ask({"call": "clock"})
    waited_s = time.monotonic() - began_s
    assert waited_s > 1.0
    with pytest.raises(PreflightError, match="does not answer"):
        connection.ask({"call": "clock"})
    assert time.monotonic() - began_s - waited_s < 0.9
    connection.close()
