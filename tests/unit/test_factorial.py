"""Whether costs add up: what is estimated, how often intervals hold the truth, what few runs say."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.regression.linear_model import OLS

from analysis.results.factorial import Contrast, Design, Factor, design_of, fit
from analysis.results.samples import PARTS, Sample
from analysis.results.study_effects import effects_of

MTLS = Factor(name="mtls", values=("without", "with"))
POLICY = Factor(name="policy", values=("without", "with"))
PROFILE = Factor(name="profile", values=("net0", "net2"))
FACTORS = (POLICY, MTLS, PROFILE)
TOGETHER = Contrast(changes=(("mtls", "with"), ("profile", "net2")))
LONG_PATH = Contrast(changes=(("mtls", "with"),), given=(("profile", "net2"),))
SHORT_PATH = Contrast(changes=(("mtls", "with"),), given=(("profile", "net0"),))


def study(repetitions: int) -> Design:
    """Every combination of the three factors so many times."""
    cells = [
        dict(zip((f.name for f in FACTORS), values, strict=True))
        for values in itertools.product(*(f.values for f in FACTORS))
    ]
    return design_of(FACTORS, cells * repetitions, three=[("policy", "mtls", "profile")])


def truth_s(design: Design) -> NDArray[np.float64]:
    """mTLS costs 10 ms, and 0.4 s more under net2, which costs 3 s; NetworkPolicy nothing."""
    mtls = np.array([run["mtls"] == "with" for run in design.runs])
    net2 = np.array([run["profile"] == "net2" for run in design.runs])
    return 1 + 0.01 * mtls + 3 * net2 + 0.4 * mtls * net2


def test_without_noise_effects_are_what_they_are() -> None:
    design = study(2)
    found = {one.contrast: one.value for one in fit(design, truth_s(design), design.contrasts()).estimates}
    assert found[TOGETHER] == pytest.approx(0.4)
    assert found[SHORT_PATH] == pytest.approx(0.01)
    assert found[LONG_PATH] == pytest.approx(0.41)
    assert found[Contrast(changes=(("mtls", "with"),))] == pytest.approx(0.21)  # over both networks
    assert found[Contrast(changes=(("policy", "with"),))] == pytest.approx(0)


def test_a_study_of_eight_runs_keeps_one_degree_of_freedom() -> None:
    design = study(1)
    assert (design.degrees, len(design.interactions)) == (1, 3)
    (left_out,) = design.left_out
    assert left_out.term == ("policy", "mtls", "profile")
    assert "8 runs are too few" in left_out.reason


def test_what_varies_together_cannot_be_told_apart() -> None:
    runs = [{"mtls": "without", "profile": "net0"}, {"mtls": "with", "profile": "net2"}] * 3
    design = design_of((MTLS, PROFILE), runs)
    assert design.terms == (("mtls",),)
    assert {one.term: one.reason for one in design.left_out} == {
        ("profile",): "it only ever varied together with others",
        ("mtls", "profile"): "left out with what it consists of",
    }


def test_a_missing_combination_leaves_its_interaction_out() -> None:
    runs = [
        {"mtls": "without", "profile": "net0"},
        {"mtls": "with", "profile": "net0"},
        {"mtls": "without", "profile": "net2"},
    ]
    design = design_of((MTLS, PROFILE), runs * 3)
    (left_out,) = design.left_out
    assert (left_out.term, left_out.reason) == (("mtls", "profile"), "the runs do not have every combination")


def test_variances_are_those_of_statsmodels() -> None:
    design = study(3)
    values = truth_s(design) * (1 + 0.1 * np.random.default_rng(4).standard_normal(len(design.runs)))
    (found,) = fit(design, values, [TOGETHER]).estimates
    weights = design.weights(TOGETHER)
    error = np.sqrt(weights @ OLS(values, design.matrix).fit().cov_HC2 @ weights)
    assert found.interval is not None and found.degrees is not None
    reach = stats.t.ppf(0.975, found.degrees) * error
    assert found.interval == pytest.approx((found.value - reach, found.value + reach))
    assert found.degrees == pytest.approx(
        16
    )  # equal variances in cells of equal size: those of the residuals


def test_two_groups_have_welchs_standard_error() -> None:
    chance = np.random.default_rng(5)
    one, other = chance.normal(1, 0.1, 6), chance.normal(2, 1, 6)
    design = design_of((MTLS,), [{"mtls": "without"}] * 6 + [{"mtls": "with"}] * 6)
    (found,) = fit(design, np.concatenate([one, other]), [Contrast(changes=(("mtls", "with"),))]).estimates
    welch = stats.ttest_ind(other, one, equal_var=False)
    assert found.interval is not None and found.degrees is not None
    reach = (found.interval[1] - found.interval[0]) / 2
    error = reach / stats.t.ppf(0.975, found.degrees)
    assert found.value / error == pytest.approx(welch.statistic)


def covered(repetitions: int, simulations: int, *, logarithmic: bool, spread: str) -> dict[Contrast, float]:
    """Contrast -> how often its interval holds the truth.

    ``spread``: runs of every cell vary by 0.1 s, or by 5 % of what they take (a factor of 4 between cells).
    """
    design = study(repetitions)
    means_s = truth_s(design)
    contrasts = [one for one in design.contrasts() if len(one.changes) < 3]
    truth = np.log(means_s) if logarithmic else means_s
    expected = [float(one.value) for one in fit(design, truth, contrasts).estimates]
    if repetitions == 1 and logarithmic:
        # What all three do together is noise to the model, and on this scale the truth has none of it.
        assert np.allclose(OLS(truth, design.matrix).fit().resid, 0)
    chance = np.random.default_rng(repetitions)
    hits = np.zeros(len(contrasts))
    for _ in range(simulations):
        noise = chance.standard_normal(len(means_s))
        if logarithmic:
            values = truth + 0.05 * noise
        else:
            values = truth + noise * (0.1 if spread == "equal" else 0.05 * means_s)
        for index, one in enumerate(fit(design, values, contrasts).estimates):
            assert one.interval is not None
            hits[index] += one.interval[0] <= expected[index] <= one.interval[1]
    return dict(zip(contrasts, hits / simulations, strict=True))


@pytest.mark.parametrize(
    ("repetitions", "logarithmic", "spread"),
    [(2, False, "relative"), (10, False, "relative"), (2, True, "equal"), (1, True, "equal")],
)
def test_intervals_hold_the_truth(repetitions: int, logarithmic: bool, spread: str) -> None:
    """300 studies of 8, 16 and 80 runs: within what 300 can tell (3 standard errors) of 90 to 97 %."""
    found = covered(repetitions, 300, logarithmic=logarithmic, spread=spread)
    assert all(0.90 - 0.05 <= share <= 0.97 + 0.03 for share in found.values()), found
    assert 0.92 <= np.mean(list(found.values())) <= 0.98, found


@pytest.mark.long
@pytest.mark.parametrize("repetitions", [1, 2, 3, 10])
@pytest.mark.parametrize("spread", ["equal", "relative", "factors"])
def test_intervals_of_many_studies_hold_the_truth(repetitions: int, spread: str) -> None:
    """A single degree of freedom knows one variance: what varies little gets too wide an interval."""
    most = 0.99 if (repetitions, spread) == (1, "relative") else 0.97
    found = covered(repetitions, 2000, logarithmic=spread == "factors", spread=spread)
    assert all(0.90 <= share <= most for share in found.values()), found


def cells_of(
    levels: tuple[int, ...] = (0, 1, 2, 3),
    profiles: tuple[str, ...] = ("net0", "net2"),
    seeds: int = 1,
    trips_ms: float = 0.0,
) -> list[dict[str, Any]]:
    """Cells as a study has them. Sidecars cost 10 ms of proxy, and ``trips_ms`` of handshakes under net2."""
    chance = np.random.default_rng(7)
    cells = []
    for profile, level, seed in itertools.product(profiles, levels, range(seeds)):
        parts_ms = dict.fromkeys(PARTS, 0.0)
        parts_ms["compute"] = 800 + 4 * chance.standard_normal()
        parts_ms["transmission"] = (50 if profile == "net0" else 900) + 4 * chance.standard_normal()
        parts_ms["proxy"] = 10 + chance.standard_normal() if level >= 2 else 0
        if level >= 2 and profile != "net0":
            parts_ms["tls_handshake"] = max(0.0, trips_ms + chance.standard_normal())
        parts_ns = {part: round(1e6 * value) for part, value in parts_ms.items()}
        parts_ns["duration"] = sum(parts_ns.values())
        rows = np.array([[parts_ns[part] for part in PARTS]] * 2, dtype=np.int64)
        factors = {"distribution": "iid", "seed": seed, "clients": 5, "reconnect": False}
        factors |= {"congestion_control": "cubic"}
        samples = (Sample(path=Path("run"), experiment="", parts_ns=rows),)
        cells.append({"profile": profile, "level": level, "samples": samples} | factors)
    return cells


def effect(found: dict[str, Any], part: str, name: str, scale: str = "linear") -> dict[str, Any]:
    return next(one for one in found["parts"][part][scale] if one["name"] == name)


def test_round_trips_are_told_apart_from_what_sidecars_cost() -> None:
    found = effects_of(cells_of(seeds=3, trips_ms=160))
    together = effect(found, "duration", "mTLS × net2")
    assert 0.14 < together["ci95"][0] < together["ci95"][1] < 0.18
    assert effect(found, "tls_handshake", "mTLS × net2")["delta_s"] == pytest.approx(0.16, abs=0.003)
    assert (
        effect(found, "proxy", "mTLS × net2")["ci95"][0]
        < 0
        < effect(found, "proxy", "mTLS × net2")["ci95"][1]
    )
    assert effect(found, "proxy", "mTLS under net0")["delta_s"] == pytest.approx(0.01, abs=0.002)
    said = next(line for line in found["said"] if line.startswith("mTLS × net2"))
    assert "they do not add up, mostly TLS handshake +1" in said


def test_costs_that_add_up_are_said_to() -> None:
    found = effects_of(cells_of(seeds=3))
    said = next(line for line in found["said"] if line.startswith("mTLS × net2"))
    assert "they add up as far as these runs can tell" in said
    assert effect(found, "duration", "mTLS")["ci95"][0] > 0


def test_effects_of_the_parts_add_up_to_the_rounds() -> None:
    found = effects_of(cells_of(trips_ms=160))
    for one in found["parts"]["duration"]["linear"]:
        parts_s = [effect(found, p, one["name"])["delta_s"] for p in found["parts"] if p != "duration"]
        assert sum(parts_s) == pytest.approx(one["delta_s"], abs=1e-6)


def test_a_part_that_some_run_has_nothing_of_has_no_logarithm() -> None:
    found = effects_of(cells_of())
    assert found["parts"]["proxy"]["log"] is None
    assert effect(found, "compute", "mTLS", "log")["ratio"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (cells_of(), "Noise is told by 1 degree of freedom alone (8 runs for 7 parameters)"),
        (cells_of(levels=(0,)), "Additive or not cannot be said: no two factors' interaction can be told."),
        (cells_of(levels=(0,), profiles=("net0",)), "Additive or not cannot be said: nothing was varied."),
        (cells_of(levels=(0, 3)), "4 runs are too few"),
    ],
)
def test_few_runs_are_said_to_be_few(cells: list[dict[str, Any]], expected: str) -> None:
    assert any(expected in line for line in effects_of(cells)["said"])


def test_a_level_that_has_both_is_one_factor() -> None:
    found = effects_of(cells_of(levels=(0, 3), seeds=3))
    assert effect(found, "duration", "sec3 × net2")["kind"] == "interaction"
