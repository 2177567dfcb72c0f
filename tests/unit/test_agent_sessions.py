"""Whose turn it is at an agent, by how long its collector has been silent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ztprobe.agent.service import session as module
from ztprobe.agent.service.session import GIVEN_UP_S, Session, Sessions
from ztprobe.errors import EnforcementError


class Process:
    """An agent's process that sees nothing."""

    closed = 0

    def __init__(self, *_: object, **__: object) -> None:
        self.pid = os.getpid()

    def close(self) -> None:
        Process.closed += 1


@pytest.fixture
def sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sessions]:
    monkeypatch.setattr(module, "AgentProcess", Process)
    monkeypatch.setattr(Process, "closed", 0)
    made = Sessions(tmp_path / "agent", queue_bytes=1 << 20, orphan_s=600)
    yield made
    made.close()


def silent(session: Session, seconds: float) -> None:
    """Its collector was heard so long ago."""
    session._seen_s = time.monotonic() - seconds


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (1, "wait until that has ended"),
        (40, "has not been heard for 40 s: another may take its place in 50 s"),
    ],
)
def test_who_is_there_or_may_come_back_keeps_its_place(sessions: Sessions, seconds: float, said: str) -> None:
    first = sessions.open("ab12cd", probes=True)
    silent(first, seconds)
    with pytest.raises(EnforcementError, match=f"at work for run ab12cd since .*{said}"):
        sessions.open("ef34ab", probes=True)
    assert sessions.get(first.token) is first
    assert Process.closed == 0


def test_who_cannot_come_back_loses_it(sessions: Sessions) -> None:
    first = sessions.open("ab12cd", probes=True)
    silent(first, GIVEN_UP_S + 1)
    second = sessions.open("ef34ab", probes=True)
    assert sessions.all() == [second]
    assert Process.closed == 1
    with pytest.raises(EnforcementError, match="nobody asked for 90 s, and run ef34ab took its place"):
        sessions.get(first.token)


def test_a_call_that_takes_long_is_no_silence(sessions: Sessions) -> None:
    first = sessions.open("ab12cd", probes=True)
    silent(first, GIVEN_UP_S + 1)
    with first._calling, pytest.raises(EnforcementError, match="at work for run ab12cd"):
        sessions.open("ef34ab", probes=True)
