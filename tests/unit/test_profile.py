"""Profiles: the shipped ones say what the table says, and a wrong one is refused in one clear line."""

from __future__ import annotations

import json
import os
import time
from dataclasses import FrozenInstanceError
from pathlib import Path

import jsonschema
import pytest

from ztprobe.cli import main
from ztprobe.errors import UsageError
from ztprobe.paths import NETPROFILES_DIR
from ztprobe.profile.model import GilbertElliott, Profile, load_profile, profile_names

TABLE = {  # delay_ms, jitter_ms, distribution, loss_pct, rate_mbit, per_packet
    "net0": (0, 0, "none", 0, None, False),
    "net1": (20, 5, "normal", 0, None, True),
    "net2": (80, 20, "normal", 0, None, True),
    "net2a": (50, 0, "none", 0, 20, False),
    "net3": (0, 0, "none", 0.5, None, True),
    "net4": (150, 0, "none", 0, None, False),
    "net4a": (50, 10, "normal", 1, None, True),
    "net5": (0, 0, "none", 0, 10, False),
}
MOVING = ("net6", "net7")


def test_exactly_the_published_profiles_come_along() -> None:
    assert profile_names() == sorted([*TABLE, *MOVING])


@pytest.mark.parametrize("name", TABLE)
def test_shipped_profile_is_the_published_one(name: str) -> None:
    p = load_profile(name)
    got = (p.delay_ms, p.jitter_ms, p.distribution, p.loss_pct, p.rate_mbit, p.per_packet)
    assert (p.name, got) == (name, TABLE[name])
    assert p.description
    assert p.source
    assert p.is_empty == (name == "net0")


def test_our_own_number_says_so() -> None:
    assert "own choice" in load_profile("net2a").source["rate_mbit"]


def test_schema_is_valid_and_explains_every_key() -> None:
    schema = json.loads((NETPROFILES_DIR / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for key in (*schema["properties"].values(), *schema["properties"]["source"]["properties"].values()):
        assert key["description"]


def test_limits_hold_what_is_under_way() -> None:
    net2a, net5 = load_profile("net2a"), load_profile("net5")
    assert net2a.queue_limit_bytes >= 20e6 / 8 * 0.050
    assert net2a.queue_limit_packets * 1514 >= net2a.queue_limit_bytes
    assert net5.burst_bytes == 3 * 1514
    assert Profile(name="x", rate_mbit=1000).burst_bytes == 125_000
    assert load_profile("net4").queue_limit_packets > 100_000  # netem's default of 1000 would drop
    assert Profile(name="x", rate_mbit=1, queue_limit_packets=7).queue_limit_packets == 7


def test_uniform_jitter_is_a_half_width() -> None:
    assert Profile(name="x", delay_ms=9, jitter_ms=3, distribution="uniform").sd_ms == pytest.approx(
        3 / 3**0.5
    )


def test_profiles_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        load_profile("net2").delay_ms = 1  # type: ignore[misc]


def test_unknown_profile_lists_the_valid_ones() -> None:
    with pytest.raises(
        UsageError, match="'net9'; valid ones: net0, net1, net2, net2a, net3, net4, net4a, net5"
    ):
        load_profile("net9")


def test_a_path_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndescription: d\ndelay_ms: 3\nsource: {delay_ms: me}\n")
    assert load_profile(path) == load_profile(str(path))
    assert load_profile(path).delay_ms == 3


HEAD = "name: x\ndescription: d\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            HEAD + "delay_ms: abc\nsource: {delay_ms: a}\n",
            3,
            'delay_ms: expected a one-way delay in milli.*"abc"',
        ),
        (HEAD + "loss_pct: 101\nsource: {loss_pct: a}\n", 3, "loss_pct: expected an independent loss.*101"),
        (HEAD + "delay_ms: -1\nsource: {delay_ms: a}\n", 3, "delay_ms: expected .*-1"),
        (
            HEAD + "delay_ms: .nan\nsource: {delay_ms: a}\n",
            3,
            "delay_ms: expected .*nan.* .numbers are decimal: 10, 0.5 or 1e2",
        ),
        (HEAD + "delay_ms: true\nsource: {delay_ms: a}\n", 3, "delay_ms: expected .*true"),
        (
            HEAD + "delay_ms: 3\nsource: {jitter_ms: a}\n",
            4,
            "source.delay_ms: expected a text that says where",
        ),
        (HEAD + "delay: 3\nsource: {delay_ms: a}\n", 3, "delay: expected one of the keys name, "),
        (HEAD + "source:\n  delay_ms: a\n  latency: b\n", 5, "source.latency: expected one of the keys"),
        (HEAD + "distribution: cauchy\nsource: {delay_ms: a}\n", 3, "expected one of none, uniform, normal"),
        (
            HEAD + "delay_ms: 9\njitter_ms: 2\nsource: {delay_ms: a, jitter_ms: b}\n",
            4,
            "expected a distribution",
        ),
        (
            HEAD + "jitter_ms: 2\ndistribution: normal\nsource: {jitter_ms: b}\n",
            3,
            "jitter_ms: expected at most delay_ms",
        ),
        (
            HEAD + "burst_bytes: 2000\nsource: {burst_bytes: b}\n",
            3,
            "burst_bytes: expected rate_mbit beside it",
        ),
        (HEAD + "source: 3\n", 3, "source: expected a mapping"),
        # What is wrong comes before what is missing, and what is missing all at once.
        ("jitter_ms: 2\ndelay_ms: fast\n", 2, "delay_ms: expected a one-way delay"),
        ("delay_ms: 3\n", 1, "name: expected a name .*, found nothing"),
        ("name: x\nname: y\n", 2, "key 'name' is given twice, on line 1 too"),
        ("name: x\n- a\n", 2, "is not YAML: "),
        ("name: &a [*a]\n", 1, "an alias that stands for nothing before it, or for itself"),
        ("[" * 3000, 1, "is nested more than 50 deep"),
        (f"delay_ms: {'9' * 5000}\n", 1, 'delay_ms: expected a one-way delay .*found "999'),
        ("delay_ms: 2026-02-31\n", 1, 'delay_ms: expected .*"2026-02-31"'),
        ("- a\n", 1, "profile: expected a mapping of profile keys"),
        ("", 1, "expected a mapping of profile keys, found an empty file"),
        (HEAD + "1: 2\nsource: {delay_ms: a}\n", 3, "1: expected one of the keys"),
    ],
)
def test_a_wrong_profile_gets_file_line_key_and_expectation(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as raised:
        load_profile(path)
    assert str(raised.value).startswith(f"{path}:{line}: ")
    assert all(line.startswith(f"{path}:") for line in str(raised.value).splitlines())


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read this network profile: No such file"):
        load_profile(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_profile(tmp_path / "binary.yaml")
    with pytest.raises(UsageError, match="cannot read this network profile: is a device, expected a"):
        load_profile(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("80", 80),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5),
        ("1e2", 100),
        ("1E+2", 100),
        ("2.5e-1", 0.25),
        ("+7", 7),
    ],
)
def test_numbers_are_read_as_people_write_them(tmp_path: Path, written: str, value: float) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"{HEAD}delay_ms: {written}\nsource: {{delay_ms: me}}\n")
    assert load_profile(path).delay_ms == value


@pytest.mark.parametrize(
    "written", ["010", "1:20", "0x50", "1_0", "0o17", "0b1", "1,5", ".inf", "1e400", "007.5"]
)
def test_numbers_of_other_kinds_are_refused(tmp_path: Path, written: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"{HEAD}delay_ms: {written}\nsource: {{delay_ms: me}}\n")
    with pytest.raises(
        UsageError, match=r"p.yaml:3: delay_ms: expected a one-way delay .*, found \""
    ) as raised:
        load_profile(path)
    assert written in str(raised.value)


def test_whole_numbers_may_have_an_exponent(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        f"{HEAD}rate_mbit: 1e1\nburst_bytes: 1e4\nqueue_limit_packets: 2e3\n"
        "source: {rate_mbit: a, burst_bytes: b, queue_limit_packets: c}\n"
    )
    profile = load_profile(path)
    assert (profile.rate_mbit, profile.burst_bytes, profile.queue_limit_packets) == (10, 10_000, 2000)
    assert isinstance(profile.burst_bytes, int) and isinstance(profile.queue_limit_packets, int)


def test_a_profile_that_never_ends_or_explodes_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    with pytest.raises(UsageError, match="cannot read this network profile: is a FIFO"):
        load_profile(tmp_path / "fifo.yaml")
    path = tmp_path / "bomb.yaml"
    path.write_text(
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    )
    began = time.process_time()
    with pytest.raises(UsageError, match=r"bomb.yaml:\d: holds more than 500000 values"):
        load_profile(path)
    assert time.process_time() - began < 2
    path.write_text("delay_ms: 3\n---\ndelay_ms: 4\n")
    with pytest.raises(UsageError, match="expected one profile, found 2 YAML documents"):
        load_profile(path)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("loss_correlation_pct: 20", 3, "loss_correlation_pct: expected loss_pct beside it"),
        ("delay_correlation_pct: 101", 3, "expected how much of a packet's draw"),
        ("loss_gilbert_elliott: {good_to_bad_pct: 1}", 3, "bad_to_good_pct: expected"),
        (
            "loss_gilbert_elliott: {good_to_bad_pct: 1, bad_to_good_pct: 2, h: 3}",
            3,
            "expected one of the keys",
        ),
        ("duplicate_pct: many", 3, "expected a share of packets that arrive twice in percent"),
        ("reorder_pct: 5", 3, "reorder_pct: expected delay_ms beside it"),
        ("distribution: samples", 3, "samples_ms or samples_file beside it"),
        ("samples_ms: [1, 2, 3]", 3, "expected a list of at least 16"),
        ("samples_file: nowhere.txt", 3, "samples_file: expected a readable file, found .*nowhere.txt"),
    ],
)
def test_every_kind_of_impairment_is_checked(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    key = text.partition(":")[0]
    source = "samples" if key.startswith("samples") else key
    extra = "distribution: samples\n" if key.startswith("samples") else ""
    path.write_text(f"name: x\ndescription: y\n{text}\n{extra}source: {{{source}: z}}\n")
    with pytest.raises(UsageError, match=message) as raised:
        load_profile(path)
    assert str(raised.value).startswith(f"{path}:{line}: ")


def test_measured_samples_are_a_distribution(tmp_path: Path) -> None:
    (tmp_path / "trace.txt").write_text("# ms\n" + "\n".join(str(10 + i % 7) for i in range(70)) + "\n")
    path = tmp_path / "p.yaml"
    path.write_text(
        "name: x\ndescription: y\ndistribution: samples\nsamples_file: trace.txt\nsource: {samples: z}\n"
    )
    profile = load_profile(path)
    assert profile.delay_ms == pytest.approx(13)
    assert profile.sd_ms == pytest.approx(2, rel=0.01)
    assert set(map(round, profile.expected_delays_ms)) == {10, 11, 12, 13, 14, 15, 16}
    (tmp_path / "trace.txt").write_text("1\nfast\n")
    with pytest.raises(UsageError, match=r"trace.txt:2: expected a delay in milliseconds.*'fast'"):
        load_profile(path)


def test_loss_models_have_the_share_they_say() -> None:
    bursts = GilbertElliott(good_to_bad_pct=1, bad_to_good_pct=9, loss_in_bad_pct=50, loss_in_good_pct=1)
    assert Profile(name="x", loss_gilbert_elliott=bursts).mean_loss_pct == pytest.approx(0.1 * 50 + 0.9)
    correlated = Profile(name="x", loss_pct=10, loss_correlation_pct=50)
    assert correlated.loss_states is not None
    assert correlated.loss_states.mean_pct == pytest.approx(10)
    chain = correlated.loss_states
    assert 1 - (chain.good_to_bad_pct + chain.bad_to_good_pct) / 100 == pytest.approx(0.5)


def test_what_leaves_at_once_counts_in_the_mean() -> None:
    profile = Profile(name="x", delay_ms=20, reorder_pct=25)
    assert profile.mean_ms == pytest.approx(15, rel=0.001)
    assert profile.per_packet
    assert Profile(name="x", delay_ms=9, jitter_ms=3, distribution="pareto").sd_ms == pytest.approx(
        2.46, abs=0.01
    )


def test_two_lines_are_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndelay_ms: 50\n")
    assert load_profile(path).delay_ms == 50
    assert main(["profile", "show", str(path)]) == 0
    assert "mine: 50 ms" in capsys.readouterr().out


def test_every_mistake_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: Mine\ndelay_ms: soon\nloss_pct: 101\nlatency: 3\n")
    with pytest.raises(UsageError) as refused:
        load_profile(path)
    lines = str(refused.value).splitlines()
    assert sorted(line.split(":")[1] for line in lines) == ["1", "2", "3", "4"]
    assert all(": expected " in line for line in lines)


def test_the_schema_has_a_name_for_editors() -> None:
    schema = json.loads((NETPROFILES_DIR / "schema.json").read_text())
    assert schema["$id"].startswith("urn:ztprobe:")
    assert all(load_profile(name).source for name in profile_names())
    assert all(load_profile(name).description for name in profile_names())
