"""Before round 1: a warning, or a wait that ends."""

from __future__ import annotations

from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from analysis import contention
from ztprobe.cli.options import wait_for_quiet_option
from ztprobe.experiment import quiet_check
from ztprobe.progress import QuietProgress


class Load:
    """A machine on which others use these shares, one look after the other, and the last one for ever."""

    problem: str | None = None
    where = "this machine"

    def __init__(self, *shares: float | None) -> None:
        self._shares = list(shares)

    def foreign_share(self, _window_s: float) -> float | None:
        return self._shares.pop(0) if len(self._shares) > 1 else self._shares[0]

    def busiest(self) -> str | None:
        return "make (pid 7)"


class Lines(QuietProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, name: str, detail: str = "") -> None:
        self.said.append(f"{name}: {detail}")

    def done(self, detail: str = "") -> None:
        self.said.append(detail)

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def passing_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves when somebody sleeps."""
    now = [100.0]
    clock = SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    monkeypatch.setattr(quiet_check, "time", clock)


def ensure(load: Load, wait_s: float | None, lines: Lines) -> dict[str, float]:
    return quiet_check.ensure_quiet(load, wait_s, lines, lambda: None)  # type: ignore[arg-type]


def test_a_quiet_machine_is_not_worth_a_word() -> None:
    lines = Lines()
    assert ensure(Load(0.019), 60, lines) == {"foreign_share_before": 0.019, "waited_s": 0}
    assert lines.said == []


def test_a_busy_machine_is_warned_of_with_who_and_what_to_do() -> None:
    lines = Lines()
    assert ensure(Load(0.24), None, lines) == {"foreign_share_before": 0.24, "waited_s": 0}
    (warning,) = lines.said
    for words in ("24.0 %", "make (pid 7)", "below 2.0 %", "--wait-for-quiet"):
        assert words in warning


def test_waiting_ends_when_it_is_quiet() -> None:
    lines = Lines()
    found = ensure(Load(0.24, 0.5, 0.1, 0.01), 60, lines)
    assert found == {"foreign_share_before": 0.01, "waited_s": 0.75}
    assert lines.said == [
        "quiet machine: foreign CPU time is 24.0 %, at most 60 s",
        "foreign CPU time was 24.0 %, is 1.0 %",
    ]


def test_waiting_ends_when_time_is_over_and_warns() -> None:
    lines = Lines()
    found = ensure(Load(0.24), 5, lines)
    assert found == {"foreign_share_before": 0.24, "waited_s": 5}
    assert lines.said[-1].startswith("warning: this machine is busy")
    assert "--wait-for-quiet" not in lines.said[-1]


def test_a_deployment_that_dies_meanwhile_ends_the_wait() -> None:
    def check() -> None:
        raise RuntimeError("a container ended")

    with pytest.raises(RuntimeError):
        quiet_check.ensure_quiet(Load(0.24), 60, Lines(), check)  # type: ignore[arg-type]


def test_a_machine_that_is_not_recorded_holds_nothing_up() -> None:
    load = Load(None)
    load.problem = "OSError: gone"
    assert ensure(load, 60, Lines())["waited_s"] == 0


def test_both_sides_mean_the_same_by_quiet() -> None:
    assert quiet_check.QUIET_SHARE == contention.QUIET_SHARE


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ([], None),
        (["--wait-for-quiet"], 120.0),
        (["--wait-for-quiet", "30"], 30.0),
        (["--wait-for-quiet=0"], 0.0),
    ],
)
def test_the_seconds_may_be_left_out(words: list[str], seconds: float | None) -> None:
    seen = []
    command = click.command()(wait_for_quiet_option(lambda wait_for_quiet: seen.append(wait_for_quiet)))
    assert CliRunner().invoke(command, words).exit_code == 0
    assert seen == [seconds]


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon"])
def test_what_is_no_time_is_refused(value: str) -> None:
    command = click.command()(wait_for_quiet_option(lambda wait_for_quiet: None))
    assert CliRunner().invoke(command, [f"--wait-for-quiet={value}"]).exit_code == 2
