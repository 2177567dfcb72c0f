"""`ztprobe profile` as far as it needs neither root nor pods."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from ztprobe import paths
from ztprobe.cli import main
from ztprobe.cli.profile import profile
from ztprobe.cli.rendering.profile import profile_words
from ztprobe.emulation.backends import only_rate
from ztprobe.profile.model import load_profile, profile_names

COMMANDS = sorted(profile.commands)


def test_commands_are_the_ones_we_mean() -> None:
    assert COMMANDS == ["apply", "clear", "list", "show", "status", "verify"]


def test_the_help_says_where_an_end_of_the_veth_cannot_be_chosen() -> None:
    said = " ".join((profile.commands["apply"].help or "").split())
    assert "net6 --at host, for one, needs netem" in said
    rate_alone = [name for name in profile_names() if only_rate(load_profile(name)) and name != "net0"]
    assert rate_alone == ["net5"]
    assert "--at is refused for all profiles but net5, which is a rate alone" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_example_that_parses(name: str) -> None:
    command = profile.commands[name]
    assert command.help
    assert len(command.get_short_help_str(limit=200)) <= 70
    match = re.search(rf"Example: (sudo )?ztprobe profile {name}(?P<words>.*)", command.epilog or "")
    assert match is not None
    command.make_context(name, match["words"].split())
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
    assert any("--json" in option.opts for option in command.params)


def test_list_shows_every_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "list"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^{name}\b", text, re.M) for name in profile_names())
    assert "20 ± 5 ms normal" in text
    assert main(["profile", "list", "--json"]) == 0
    assert [p["name"] for p in json.loads(capsys.readouterr().out)] == profile_names()


def test_show_gives_values_with_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "show", "net2a"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^rate_mbit +20 +ztprobe's own choice", text, re.M)
    assert re.search(r"^queue_limit_packets +\d+ +computed", text, re.M)
    assert main(["profile", "show", "net4a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss_pct"] == 1


def test_show_tells_what_samples_come_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rtt.txt").write_text("# one way\n" + "10\n30\n" * 20)
    path = tmp_path / "traced.yaml"
    path.write_text(
        "name: traced\ndescription: d\ndistribution: samples\nsamples_file: rtt.txt\nsource: {samples: me}\n"
    )
    assert main(["profile", "show", str(path)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^delay_ms +20 +mean of 40 samples", text, re.M)
    assert re.search(r"^jitter_ms .* the samples' standard deviation is 10 ms", text, re.M)
    assert re.search(r"^distribution +samples +me", text, re.M)
    assert profile_words(load_profile(path)) == "20 ± 10 ms as measured"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["show", "net9"], 2, "unknown network profile 'net9'; valid ones: net0"),
        (["apply", "net1", "-l", "a=b", "--for", "soon"], 2, "--for soon: expected a time such as 90s"),
        (["apply", "net0", "-l", "a=b"], 2, "net0 emulates nothing"),
        (["apply", "net1"], 2, "Missing option '--selector'"),
    ],
)
def test_mistakes_get_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str
) -> None:
    assert main(["profile", *words]) == status
    error = capsys.readouterr().err
    assert error.startswith("ztprobe: ")
    assert message in error
    assert error.count("\n") == 1


def test_verifying_nothing_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    monkeypatch.setattr("ztprobe.cli.profile._need_root", lambda: None)
    assert main(["profile", "verify"]) == 5
    assert "no profile is in force, so there is nothing to verify" in capsys.readouterr().err
    assert main(["profile", "verify", "--json"]) == 5
    assert capsys.readouterr().out == "[]\n"
    assert main(["profile", "status"]) == 0


def test_a_wrong_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndescription: d\ndelay: 5\nsource: {description: x}\n")
    assert main(["profile", "show", str(path)]) == 2
    assert f"{path}:3: delay: expected one of the keys name, " in capsys.readouterr().err
