"""What is drawn and said of a schedule."""

from __future__ import annotations

import json

import pytest

from tests.unit.schedules import every
from ztprobe.cli import main
from ztprobe.cli.rendering.schedule import plot, schedule_words
from ztprobe.profile.model import Profile, load_profile


def test_a_plot_is_small_and_shows_short_steps() -> None:
    for profile in (
        load_profile("net6"),
        load_profile("net7"),
        Profile(name="x", schedule=every(0.5, {"rate_mbit": 4.0}, {})),
    ):
        lines = plot(profile)
        assert max(map(len, lines)) <= 100
        assert len(lines) <= 20
        for width in (41, 80):
            assert max(map(len, plot(profile, width))) <= width
    satellite = plot(load_profile("net6"))
    assert satellite[0] == "delay [ms]"
    assert satellite[1].count("█") == 1  # the hand-over of 0.2 s at 60 ms
    assert satellite[-1].endswith("60 s")
    assert "∙" in "".join(plot(Profile(name="x", schedule=every(0.5, {"rate_mbit": 4.0}, {}))))


def test_schedules_in_a_few_words() -> None:
    assert schedule_words(load_profile("net7")) == (
        "5 steps in 60 s, again and again: delay 35 … 85 ms, rate 1.6 … 12 Mbit/s"
    )
    stays = Profile(name="x", schedule=every(2, {"delay_ms": 5.0}, {"delay_ms": 5.0, "rate_mbit": 1.0}))
    assert schedule_words(stays) == (
        "2 steps in 2 s, the last one stays: delay 5 ms, rate 1 Mbit/s or no limit"
    )


def test_show_draws_and_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    def show(*words: str) -> str:
        assert main(["profile", "show", *words]) == 0
        return capsys.readouterr().out

    shown = show("net6")
    assert "Huston" in shown
    assert "delay [ms]" in shown
    found = json.loads(show("net7", "--json"))
    assert found["schedule"]["repeat"] is True
    assert [step["for_s"] for step in found["schedule"]["steps"]] == [20, 10, 10, 10, 10]
    assert json.loads(show("net2", "--json"))["schedule"] is None
