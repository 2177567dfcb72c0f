import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztprobe.errors import UsageError
from ztprobe.experiment.names import MAX_SEED, Experiment, parse_baseline, parse_experiment

PROFILES = ("net0", "net2", "net2a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("net2-sec3", Experiment(profile="net2", level=3)),
        ("net2a-sec0-iid", Experiment(profile="net2a", level=0)),
        ("net0-sec1-noniid-s4", Experiment(profile="net0", level=1, distribution="noniid", seed=4)),
        ("net0-sec1-s12", Experiment(profile="net0", level=1, seed=12)),
    ],
)
def test_parses_the_name(text: str, expected: Experiment) -> None:
    assert parse_experiment(text, PROFILES) == expected


@given(
    profile=st.sampled_from(PROFILES),
    level=st.integers(0, 3),
    distribution=st.sampled_from(("iid", "noniid")),
    seed=st.integers(0, MAX_SEED),
)
def test_the_canonical_name_reads_back(profile: str, level: int, distribution: str, seed: int) -> None:
    experiment = Experiment(profile=profile, level=level, distribution=distribution, seed=seed)
    assert parse_experiment(experiment.name, PROFILES) == experiment


def test_two_spellings_are_one_experiment() -> None:
    assert parse_experiment("net2-sec3-iid-s0", PROFILES).name == "net2-sec3"


@pytest.mark.parametrize(
    "text", ["", "net2", "net2-sec", "net2-sec3-", "net2-sec3-s-1", "sec3-net2", "net2-sec3 "]
)
def test_what_is_no_name_is_told_the_pattern_and_the_valid_ones(text: str) -> None:
    with pytest.raises(UsageError, match=r"net<profile>-sec<level>.*net0, net2, net2a.*sec0, sec1"):
        parse_experiment(text, PROFILES)


def test_unknown_profile_and_level_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no network profile net9; there are net0, net2, net2a"):
        parse_experiment("net9-sec0", PROFILES)
    with pytest.raises(UsageError, match="no security level sec4; there are sec0, sec1, sec2, sec3"):
        parse_experiment("net0-sec4", PROFILES)


def test_the_seed_may_stand_in_one_place_only() -> None:
    assert parse_experiment("net0-sec0", PROFILES, seed=4).seed == 4
    assert parse_experiment("net0-sec0-s4", PROFILES, seed=4).seed == 4
    with pytest.raises(UsageError, match="names seed 3 and --seed says 4"):
        parse_experiment("net0-sec0-s3", PROFILES, seed=4)
    with pytest.raises(UsageError, match="names seed 0 and --seed says 4"):
        parse_experiment("net0-sec0-s0", PROFILES, seed=4)


def test_a_seed_too_wide_is_refused() -> None:
    with pytest.raises(UsageError, match=str(MAX_SEED)):
        parse_experiment(f"net0-sec0-s{MAX_SEED + 1}", PROFILES)


def test_the_default_baseline_keeps_data_and_seed() -> None:
    experiment = parse_experiment("net2-sec3-noniid-s4", PROFILES)
    baseline = experiment.default_baseline()
    assert baseline is not None
    assert baseline.name == "net0-sec0-noniid-s4"
    assert baseline.default_baseline() is None


def test_a_named_baseline_takes_over_what_it_leaves_out() -> None:
    experiment = parse_experiment("net2-sec3-noniid-s4", PROFILES)
    assert parse_baseline("net0-sec0", experiment, PROFILES).name == "net0-sec0-noniid-s4"
    assert parse_baseline("net0-sec0-iid-s1", experiment, PROFILES).name == "net0-sec0-s1"


def test_levels_say_which_controls_are_on() -> None:
    experiments = [Experiment(profile="net0", level=level) for level in range(4)]
    assert [e.network_policy for e in experiments] == [False, True, False, True]
    assert [e.mutual_tls for e in experiments] == [False, False, True, True]
