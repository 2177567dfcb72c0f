import errno
import io

import pytest

from ztprobe.progress import LiveProgress, PlainProgress, QuietProgress, open_progress


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(params=[PlainProgress, LiveProgress])
def shown(request: pytest.FixtureRequest):
    stream, clock = io.StringIO(), Clock()
    return request.param(stream, clock), stream, clock


def lines(stream: io.StringIO) -> list[str]:
    # Where there is no terminal to erase from, rich leaves empty lines.
    return [" ".join(line.split()) for line in stream.getvalue().splitlines() if line]


def test_a_stage_leaves_one_line_with_its_time_if_that_was_long(shown) -> None:
    progress, stream, clock = shown
    with progress:
        progress.stage("pods", "5 clients")
        clock.now_s += 1.9
        progress.done("7 pods")
        progress.stage("probes")
        clock.now_s += 2.5
        progress.done("9 signals")
        progress.stage("analysis")
        progress.done()
    assert lines(stream) == ["pods 7 pods", "probes 9 signals (2.5 s)", "analysis done"]


def test_the_next_stage_ends_the_one_before(shown) -> None:
    progress, stream, _ = shown
    with progress:
        progress.stage("pods", "5 clients")
        progress.stage("probes")
        progress.done("up")
        progress.done("nothing is open any more")
    assert lines(stream) == ["pods 5 clients", "probes up"]


def test_rounds_and_notes_are_lines_and_brackets_are_text(shown) -> None:
    progress, stream, _ = shown
    with progress:
        progress.round_done(3, 10, 1.234, "fl-client-0 last")
        progress.note("raw_tp [sock]")
    assert lines(stream) == ["round 3 of 10 1.23 s fl-client-0 last", "raw_tp [sock]"]


def test_a_failure_names_the_stage_it_happened_in(shown) -> None:
    progress, stream, clock = shown
    with pytest.raises(RuntimeError), progress:  # noqa: PT012
        progress.stage("mutual TLS")
        clock.now_s += 1
        raise RuntimeError
    assert lines(stream) == ["mutual TLS not finished after 1.0 s"]


def test_a_terminal_that_is_gone_does_not_hide_the_failure(shown, monkeypatch) -> None:
    progress, stream, _ = shown

    def gone(*_arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(RuntimeError, match="the failure"), progress:  # noqa: PT012
        progress.stage("rounds")
        monkeypatch.setattr(stream, "write", gone)
        raise RuntimeError("the failure")


def test_a_bar_ends_in_one_line(shown) -> None:
    progress, stream, _ = shown
    with progress, progress.bar("verifying", 8) as advance:
        for _ in range(8):
            advance(1)
    assert lines(stream)[-1] == "verifying 8 of 8"
    if type(progress) is PlainProgress:
        assert lines(stream)[:-1] == ["verifying 2 of 8", "verifying 4 of 8", "verifying 6 of 8"]


def test_the_display_suits_the_stream() -> None:
    assert isinstance(open_progress(quiet=True), QuietProgress)
    assert type(open_progress(stream=io.StringIO())) is PlainProgress
