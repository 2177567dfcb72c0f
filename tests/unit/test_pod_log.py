"""A container's log through the API: whole and in order, however often the line to it breaks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ztprobe.errors import PreflightError
from ztprobe.kubernetes import pod_log
from ztprobe.kubernetes.pod_log import PodLog

AWAY = PreflightError("the Kubernetes API does not answer")


def stamped(number: int) -> bytes:
    return b"2026-01-02T03:04:%02d.678901234Z line %d" % (number % 60, number)


class Container:
    """Writes lines, and is read through a connection that breaks after so many of them."""

    def __init__(self, *, breaks_after: int | None = None) -> None:
        self.lines: list[bytes] = []
        self.breaks_after = breaks_after
        self.asked: list[tuple[int | None, bool]] = []
        self.is_over = False
        self.skips = 0  # lines that are older than what is asked for: the last ones come twice

    def read(self, since_s: int | None, follow: bool) -> Iterator[bytes]:
        self.asked.append((since_s, follow))
        if not self.lines:
            raise PreflightError("the container is waiting to start")
        at = 0 if since_s is None else self.skips
        told = 0
        while True:
            while at < len(self.lines):
                yield self.lines[at]
                at, told = at + 1, told + 1
                if self.breaks_after is not None and told >= self.breaks_after and follow:
                    self.skips = max(0, at - 2)
                    raise AWAY
            if self.is_over or not follow:
                return
            time.sleep(0.002)


def await_lines(kept: Path, count: int) -> list[str]:
    until_s = time.monotonic() + 20
    while len(found := kept.read_text().splitlines() if kept.exists() else []) < count:
        assert time.monotonic() < until_s, found
        time.sleep(0.005)
    return found


@pytest.fixture(autouse=True)
def again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_log, "_AGAIN_S", 0.005)


def test_a_log_is_kept_whole_over_a_connection_that_breaks(tmp_path: Path) -> None:
    container, kept = Container(breaks_after=5), tmp_path / "fl-server.server.log"
    log = PodLog(container.read, kept)
    log.look()  # nothing has been written yet
    assert not kept.exists()
    for number in range(40):
        container.lines.append(stamped(number))
        if number % 10 == 9:
            await_lines(kept, number + 1)
    log.close()
    assert kept.read_text().splitlines() == [f"line {number}" for number in range(40)]
    # Only the first time is everything asked for, and later no more than what may be new.
    sinces = [since_s for since_s, _ in container.asked]
    first = sinces.index(next(since_s for since_s in sinces if since_s is not None))
    assert all(since_s is not None and 5 <= since_s < 60 for since_s in sinces[first:])


def test_what_is_complete_has_the_last_line_and_nothing_comes_after_its_end(tmp_path: Path) -> None:
    container, kept = Container(), tmp_path / "log"
    container.lines += [stamped(1), b"failed to watch the log: what kubelet says for itself"]
    log = PodLog(container.read, kept)
    log.look()
    assert kept.read_text() == "line 1\n"
    container.lines.append(stamped(2))
    log.complete()
    assert kept.read_text() == "line 1\nline 2\n"
    log.close()
    container.lines.append(stamped(3))
    time.sleep(0.05)
    log.close()
    assert kept.read_text() == "line 1\nline 2\n"
    container.is_over = True


def test_equal_words_at_other_times_are_other_lines(tmp_path: Path) -> None:
    container = Container()
    container.lines += [b"2026-01-02T03:04:05.000000001Z x", b"2026-01-02T03:04:05.000000002Z x"]
    log = PodLog(container.read, tmp_path / "log")
    log.complete()
    log.complete()
    assert (tmp_path / "log").read_text() == "x\nx\n"
