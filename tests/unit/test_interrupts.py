import signal
import threading

import pytest

from ztprobe.process.interrupts import Interrupted, catching, shielded


def test_the_first_signal_raises_and_the_rest_only_say_something() -> None:
    said: list[str] = []
    cleaned = False
    with pytest.raises(Interrupted) as caught, catching(said.append):  # noqa: PT012
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            cleaned = True
    assert cleaned
    assert len(said) == 2
    assert caught.value.exit_code == 130


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_other_signals_end_with_their_own_code(signum: signal.Signals, code: int) -> None:
    with pytest.raises(Interrupted, match=signum.name) as caught, catching(lambda _text: None):
        signal.raise_signal(signum)
    assert caught.value.exit_code == code


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catching(lambda _text: None):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("trouble", [BrokenPipeError("no reader"), RuntimeError("reentrant call")])
def test_a_notice_that_cannot_be_shown_does_not_break_the_clean_up(trouble: Exception) -> None:
    def notice(_text: str) -> None:
        raise trouble

    steps: list[str] = []
    with pytest.raises(Interrupted), catching(notice):  # noqa: PT012
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            steps.append("cleaned")
    assert steps == ["cleaned"]


def test_a_shield_holds_the_signal_back_until_the_outermost_ends() -> None:
    steps: list[str] = []
    with pytest.raises(Interrupted), catching(lambda _text: None):  # noqa: PT012
        with shielded():
            with shielded():
                signal.raise_signal(signal.SIGTERM)
                steps.append("inner")
            steps.append("outer")
        steps.append("never")
    assert steps == ["inner", "outer"]


def test_a_shield_inside_an_interrupted_clean_up_raises_nothing_more() -> None:
    steps: list[str] = []
    with pytest.raises(Interrupted), catching(lambda _text: None):  # noqa: PT012
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            with shielded():
                signal.raise_signal(signal.SIGINT)
                steps.append("cleaned")
            steps.append("left")
    assert steps == ["cleaned", "left"]


def test_a_shield_is_harmless_without_a_catcher_and_in_other_threads() -> None:
    with shielded():
        pass
    entered = threading.Event()

    def body() -> None:
        with shielded():
            entered.set()

    with catching(lambda _text: None):
        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
    assert entered.is_set()


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with catching(lambda _text: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
