"""What rounds would take otherwise: the recorded runs replayed, what is refused, predictions beside cells."""

from __future__ import annotations

import dataclasses
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import statistics
from analysis.ledger.model import COMPONENTS
from analysis.whatif import question
from analysis.whatif.change import WhatIfCell, WhatIfChange, check_profile
from analysis.whatif.check import CHECK_SCHEMA_VERSION, check_study, kept_checks
from analysis.whatif.graph import ClientWay, MessageWay, RoundWay, RunWay, way_of
from analysis.whatif.processors import ends_of, work_of
from analysis.whatif.replay import predict, replay
from analysis.whatif.scatter import draw_check
from tests.unit.recorded_run import RECORDED
from ztprobe.cli import main
from ztprobe.errors import RunDirError, UsageError
from ztprobe.profile.model import load_profile
from ztprobe.rundir.store import load_run

RECONNECTING = RECORDED.parent / "net2-sec3-reconnect"
NOTHING_IN_THE_WAY = WhatIfChange(without=frozenset({"mtls", "policy", "profile"}))
MS = 1_000_000


@cache
def way(path: Path) -> RunWay:
    return way_of(load_run(path))


@pytest.mark.parametrize("path", [RECORDED, RECORDED / "baseline", RECONNECTING], ids=lambda path: path.name)
def test_without_a_change_the_recorded_rounds_come_out(path: Path) -> None:
    replayed = replay(way(path), WhatIfChange())
    assert [one.duration_ns for one in replayed] == [one.duration_ns for one in way(path).rounds]
    report = json.loads((RECORDED / "report.json").read_text())
    if path == RECORDED:
        recorded = [one for one in report["rounds"] if one["counted"]]
        assert [one.critical_client for one in replayed] == [one["critical_client"] for one in recorded]
        for one, of in zip(replayed, recorded, strict=True):
            for name in COMPONENTS:
                assert one.components_ns[name] == pytest.approx(of["components"][name] * 1e9, abs=2)


@pytest.mark.parametrize(
    "change",
    [
        NOTHING_IN_THE_WAY,
        WhatIfChange(profile=load_profile("net4")),
        WhatIfChange(profile=load_profile("net4"), congestion_control="bbr"),
    ],
    ids=lambda change: " ".join(change.words),
)
def test_components_are_the_predicted_round(change: WhatIfChange) -> None:
    for one in replay(way(RECORDED), change):
        assert sum(one.components_ns.values()) == one.duration_ns
        assert min(one.components_ns.values()) >= 0


def test_the_measured_baseline_is_met() -> None:
    """Nothing of the baseline went into it; the interval of 7 rounds of it is 0.82 to 1.09 s."""
    predicted = predict(way(RECORDED), NOTHING_IN_THE_WAY)
    measured = predict(way(RECORDED / "baseline"), WhatIfChange())
    assert measured.interval_s is not None
    assert measured.interval_s[0] <= predicted.mean_s <= measured.interval_s[1]
    for name in ("server", "compute", "transmission"):
        assert predicted.components_s[name] == pytest.approx(measured.components_s[name], abs=0.05)
    assert predicted.components_s["proxy"] == 0


def test_a_new_connection_costs_its_handshakes() -> None:
    as_it_was, predicted = (
        predict(way(RECORDED), one) for one in (WhatIfChange(), WhatIfChange(reconnect=True))
    )
    report = json.loads((RECORDED / "report.json").read_text())
    for name in ("tcp_handshake", "tls_handshake", "http2_setup"):
        setup_s = report["connection_setup"]["components"][name]["median_s"]
        assert predicted.components_s[name] == pytest.approx(setup_s, abs=1e-6)
    assert predicted.mean_s > as_it_was.mean_s + 0.5


def test_a_removed_handshake_leaves_that_of_tcp() -> None:
    predicted = predict(way(RECONNECTING), WhatIfChange(without=frozenset({"mtls", "profile"})))
    assert predicted.components_s["tls_handshake"] == predicted.components_s["proxy"] == 0
    assert predicted.components_s["tcp_handshake"] > 0


def test_what_applications_ask_for_without_their_sidecars_is_not_seen() -> None:
    with pytest.raises(UsageError, match="does not show what a new connection asks for names"):
        predict(way(RECONNECTING), WhatIfChange(without=frozenset({"mtls"})))


def test_questions_for_names_come_one_after_another_and_their_answers_are_not_delayed() -> None:
    asking = client("one", 50, transmission_ms=20, window_ms=0)
    asking.at_client_ns["dns"] = 404 * MS  # four times 100 ms there, and 1 ms of the resolver's
    run = run_of(asking, reconnect=True, questions=4)
    (moved,) = replay(run, WhatIfChange(profile=load_profile("net4")))
    assert moved.components_ns["dns"] == 4 * 150 * MS + 4 * MS + 4 * 30_000
    (bare,) = replay(run, WhatIfChange(without=frozenset({"profile"})))
    assert bare.components_ns["dns"] == 4 * MS + 4 * 30_000


def test_a_new_connection_takes_what_this_runs_took_when_they_were_new() -> None:
    usual = client("one", 50, transmission_ms=20, window_ms=0)
    first = client("one", 500, transmission_ms=900, window_ms=700)
    first.up.components_ns["retransmission"] = 30 * MS
    run = run_of(usual, first=(first,), setup_ns={"tcp_handshake": 200 * MS})
    (as_it_was,) = replay(run, WhatIfChange())
    (anew,) = replay(run, WhatIfChange(reconnect=True))
    assert anew.components_ns["transmission"] == 2 * 900 * MS
    assert anew.components_ns["compute"] == as_it_was.components_ns["compute"]
    assert anew.duration_ns - as_it_was.duration_ns == (200 + 2 * (900 - 20) + 2 * 30) * MS


def test_windows_of_a_new_connection_are_new_on_both_sides() -> None:
    """No message came after an idle phase: the buffer asked for two flights, a new window needs nine."""
    run = run_of(client("one", 50, transmission_ms=20, window_ms=0), setup_ns={"tcp_handshake": 200 * MS})
    (as_it_was,) = replay(run, WhatIfChange())
    (anew,) = replay(run, WhatIfChange(reconnect=True))
    assert anew.duration_ns - as_it_was.duration_ns == (200 + 2 * 7 * 200) * MS


def message(transmission_ms: int, window_ms: int, propagation_ms: int = 100) -> MessageWay:
    parts = dict.fromkeys((*COMPONENTS, "residual"), 0)
    parts |= {"propagation": propagation_ms * MS, "transmission": transmission_ms * MS}
    return MessageWay(
        components_ns=parts,
        window_ns=window_ms * MS,
        jitter_ns=0,
        one_way_ns=propagation_ms * MS,
        bytes=4_800_000,
        packets=3315,
    )


def client(name: str, compute_ms: int, *, transmission_ms: int, window_ms: int) -> ClientWay:
    at_client = dict.fromkeys((*COMPONENTS, "residual"), 0) | {"compute": compute_ms * MS}
    one = message(transmission_ms, window_ms)
    return ClientWay(client=name, before_ns=0, down=one, at_client_ns=at_client, up=one)


def run_of(*clients: ClientWay, **fields: Any) -> RunWay:
    latest_ns = max(one.arrival_ns for one in clients)
    one = RoundWay(round=2, duration_ns=latest_ns + MS, tail_ns=MS, clients=clients)
    experiment = {"profile": "net2", "level": 0, "distribution": "iid", "seed": 0}
    made = RunWay(
        path="run",
        experiment=experiment,
        clients=len(clients),
        reconnect=False,
        congestion_control="cubic",
        cpus=2,
        has_rate=False,
        rounds=(one,),
        counted_ns=(one.duration_ns,),
        contended=False,
    )
    return dataclasses.replace(made, **fields)


def test_another_client_may_be_the_critical_one_then() -> None:
    """One waits for windows, the other trains longer: without the path's delay the second decides."""
    run = run_of(
        client("waits", 500, transmission_ms=2000, window_ms=1980),
        client("trains", 900, transmission_ms=1000, window_ms=980),
    )
    (as_it_was,) = replay(run, WhatIfChange())
    (without,) = replay(run, WhatIfChange(without=frozenset({"profile"})))
    assert (as_it_was.critical_client, without.critical_client) == ("waits", "trains")
    assert without.duration_ns == pytest.approx((900 + 2 * 20 + 1) * MS, abs=2 * MS)


def test_trainings_that_come_together_share_the_processors() -> None:
    """Four that came one after another, at the same time on two CPUs: twice as long."""
    clients = [
        dataclasses.replace(client(f"c{n}", 500, transmission_ms=1, window_ms=0), before_ns=n * 600 * MS)
        for n in range(4)
    ]
    run = run_of(*clients)
    (as_it_was,) = replay(run, WhatIfChange())
    assert as_it_was.duration_ns == run.rounds[0].duration_ns
    together = run_of(*(dataclasses.replace(one, before_ns=0) for one in clients))
    spans = [(one.ready_ns, one.ready_ns + 500 * MS) for one in together.rounds[0].clients]
    assert work_of(spans, 2) == pytest.approx([250 * MS] * 4)
    assert ends_of([0] * 4, [500 * MS] * 4, 2) == pytest.approx([1000 * MS] * 4)


def test_work_and_ends_undo_each_other() -> None:
    chance = np.random.default_rng(2)
    for _ in range(50):
        starts = chance.uniform(0, 1e9, 5)
        spans = list(zip(starts, starts + chance.uniform(0, 2e9, 5), strict=True))
        work = work_of(spans, 2)
        assert ends_of(list(starts), work, 2) == pytest.approx([end for _, end in spans])


def test_an_interval_of_the_mean_holds_it() -> None:
    """Rounds of a run that are correlated by 0.3; the same resampling as overhead's."""
    chance = np.random.default_rng(6)
    covered = 0
    for _ in range(300):
        noise = chance.standard_normal(20)
        for at in range(1, 20):
            noise[at] = 0.3 * noise[at - 1] + np.sqrt(1 - 0.3**2) * noise[at]
        values_ns = np.rint(1e9 * (1 + 0.09 * noise)).astype(np.int64)
        low, high = statistics.mean_interval(values_ns) or (0, 0)
        covered += low <= 1e9 <= high
    assert 0.90 <= covered / 300 <= 0.985


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "nothing is asked"),
        (["--without", "polling"], "--without polling: no measured runs with and without it are at hand"),
        (["--reconnect"], "--reconnect: no measured runs under net2 check it"),
        (["--congestion-control", "bbr"], "its path's delay varies or loses packets"),
        (["--profile", "net4"], "--profile net4: no measured runs under net2 check it"),
        (["--profile", "net1"], "--profile net1: has jitter"),
        (["--profile", "net5"], "--profile net5: has a rate"),
        (["--profile", "net4", "--without", "profile"], "contradicts --without profile"),
        (["--congestion-control", "reno"], "--congestion-control reno: expected cubic or bbr"),
        (["--congestion-control", "cubic"], "has it already"),
        (["--without", "mtls", "--check", "nowhere"], "--check nowhere: is neither a study's directory"),
        (["--without", "mtls", "--out", "x"], "--out x: is for a whole check"),
        (["--without", "sleep"], "--without"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    capsys, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: str
) -> None:
    monkeypatch.setattr(question, "kept_checks", dict)  # as if none came with ztprobe
    assert main(["whatif", str(RECORDED), *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1 and expected in shown.err


def test_what_was_not_there_cannot_be_taken_away(capsys) -> None:
    assert main(["whatif", str(RECORDED / "baseline"), "--without", "mtls"]) == 2
    assert "--without mtls: net0-sec0 (2 clients) has none" in capsys.readouterr().err


def test_a_run_that_failed_is_refused() -> None:
    with pytest.raises(RunDirError, match="only complete runs"):
        way_of(load_run(RECORDED.parent / "failed" / "resources-oom-kill"))


def test_a_path_with_a_rate_does_not_show_how_fast_it_is_without() -> None:
    run = way(RECORDED.parent / "net5-sec0")
    assert run.has_rate
    with pytest.raises(UsageError, match="limits the rate"):
        predict(run, WhatIfChange(without=frozenset({"profile"})))


def test_profiles_of_a_fixed_delay_can_be_asked_for() -> None:
    assert check_profile(load_profile("net4")).name == "net4"
    with pytest.raises(UsageError, match="has loss"):
        check_profile(load_profile("net3"))


def test_cells_are_what_a_question_makes_of_them() -> None:
    cell = WhatIfCell(profile="net2", level=3, clients=5)
    assert NOTHING_IN_THE_WAY.target(cell) == WhatIfCell(profile="net0", level=0, clients=5)
    assert WhatIfChange(without=frozenset({"mtls"})).target(cell).level == 1
    assert WhatIfChange(without=frozenset({"policy"}), reconnect=True).target(cell) == WhatIfCell(
        profile="net2", level=2, clients=5, reconnect=True
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs each of the recorded run's cell and of its baseline's."""
    path = tmp_path_factory.mktemp("study")
    cells = []
    for profile, level, source in (("net0", 0, RECORDED / "baseline"), ("net2", 3, RECORDED)):
        name = f"{profile}-sec{level}"
        experiment = {"profile": profile, "level": level, "distribution": "iid", "seed": 0}
        cells.append({"name": name, "experiment": experiment, "clients": 2, "reconnect": False})
        (path / "runs" / name).mkdir(parents=True)
        for number in (1, 2):
            os.symlink(source, path / "runs" / name / f"r{number:02d}")
    plan = {"name": "pair", "rounds": 8, "repetitions": 2, "cells": cells}
    (path / "study.json").write_text(json.dumps(plan))
    return path


def test_predictions_stand_beside_measured_cells(study: Path) -> None:
    check = check_study(study)
    (row,) = check["rows"]  # the other way round nothing can be taken away
    assert row["options"] == "--without mtls --without policy --without profile"
    assert row["predicted_s"] == pytest.approx(predict(way(RECORDED), NOTHING_IN_THE_WAY).mean_s)
    assert row["measured_s"] == pytest.approx(0.931930879)
    assert abs(row["error"]) < 0.05
    assert sum(row["components"].values()) == pytest.approx(row["predicted_s"] - row["measured_s"], abs=1e-6)
    assert check["by_option"][0]["predictions"] == 1
    assert (check["about"]["runs"], check["about"]["contended_runs"]) == (4, 0)
    assert draw_check(check) == draw_check(check)


def test_a_prediction_says_how_far_such_ones_were_off(study: Path, capsys, tmp_path: Path) -> None:
    options = ["--without", "mtls", "--without", "policy", "--without", "profile"]
    assert main(["whatif", str(RECORDED), *options, "--check", str(study)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "net0-sec0 (2 clients) was measured: 932 ms" in printed
    assert main(["whatif", str(RECORDED), *options, "--check", str(study), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["predicted"]["ci95"][0] < found["predicted"]["mean_s"] < found["predicted"]["ci95"][1]
    assert main(["whatif", "--check", str(study), "--out", str(tmp_path / "out")]) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        f"whatif-check.{form}" for form in ("json", "csv", "svg")
    }


def test_a_study_without_the_cells_does_not_check(study: Path, capsys) -> None:
    assert main(["whatif", str(RECORDED), "--reconnect", "--check", str(study)]) == 2
    assert "no measured runs under net2 check it" in capsys.readouterr().err


def test_runs_that_others_disturbed_check_nothing(study: Path, capsys, monkeypatch) -> None:
    from analysis.whatif import check as module

    def disturbed(run: Any) -> RunWay:
        return dataclasses.replace(way_of(run), contended=True)

    monkeypatch.setattr(module, "way_of", disturbed)
    options = ["--without", "mtls", "--without", "policy", "--without", "profile"]
    assert main(["whatif", str(RECORDED), *options, "--check", str(study)]) == 2
    assert "that had the machine to themselves" in capsys.readouterr().err
    assert main(["whatif", "--check", str(study)]) == 0
    assert "others used the machine during 4 of 4 runs" in " ".join(capsys.readouterr().out.split())


def test_a_run_that_others_disturbed_is_left_out_beside_quiet_ones(study: Path, monkeypatch) -> None:
    from analysis.whatif import check as module

    disturbed = iter((True, False, True, False))  # one of each cell
    monkeypatch.setattr(
        module, "way_of", lambda run: dataclasses.replace(way_of(run), contended=next(disturbed))
    )
    check = check_study(study)
    (row,) = check["rows"]
    assert (row["runs"], row["contended"]) == ([1, 1], False)
    assert (check["about"]["runs"], check["about"]["contended_runs"]) == (4, 2)


def test_checks_that_come_with_ztprobe_can_be_read() -> None:
    for name, check in kept_checks().items():
        assert (check["study"], check["schema_version"]) == (name, CHECK_SCHEMA_VERSION)
        assert check["rows"]
    overall = kept_checks()["paper-80"]["overall"]
    assert overall["mean_error_beyond"] <= 0.03
    assert overall["p95_error_beyond"] <= 0.08


def test_a_check_that_comes_with_ztprobe_lets_its_questions_be_asked(capsys) -> None:
    options = ["--without", "mtls", "--without", "policy", "--without", "profile"]
    assert main(["whatif", str(RECORDED), *options]) == 0
    assert "checked on paper-80: " in capsys.readouterr().out
    assert main(["whatif", str(RECORDED / "baseline"), "--profile", "net4"]) == 0
    assert "checked on whatif-check: " in capsys.readouterr().out
