"""Questions whose answer a run does not show are refused, before any measured run is asked."""

from __future__ import annotations

import dataclasses

import pytest

from analysis.whatif.change import WhatIfChange
from analysis.whatif.graph import RunWay
from analysis.whatif.refusals import refuse_untold
from analysis.whatif.replay import replay
from tests.unit.recorded_run import RECORDED
from tests.unit.test_whatif import MS, client, run_of, way
from ztprobe.cli import main
from ztprobe.errors import UsageError
from ztprobe.profile.model import load_profile

BBR = WhatIfChange(congestion_control="bbr")


def a_run(**fields: object) -> RunWay:
    """On a path of 100 ms each way."""
    return run_of(client("one", 50, transmission_ms=20, window_ms=10), **fields)


def test_a_recorded_run_shows_whether_its_delay_is_fixed() -> None:
    assert way(RECORDED).varies  # 80 ms and 20 ms more or less
    assert not way(RECORDED / "baseline").varies
    assert not way(RECORDED).offloads


def test_how_other_windows_answer_jitter_is_not_told() -> None:
    assert replay(a_run(), BBR)
    with pytest.raises(UsageError, match="its path's delay varies or loses packets"):
        refuse_untold(a_run(varies=True), BBR)
    elsewhere = WhatIfChange(congestion_control="bbr", profile=load_profile("net4"))
    assert replay(a_run(varies=True), elsewhere)  # the other path's delay is fixed


def test_new_connections_on_such_a_path_take_a_first_round_that_was_seen() -> None:
    setup_ns = {"tcp_handshake": 200 * MS}
    reconnect = WhatIfChange(reconnect=True)
    with pytest.raises(UsageError, match="its path's delay varies or loses packets"):
        refuse_untold(a_run(varies=True, setup_ns=setup_ns), reconnect)
    first = (client("one", 500, transmission_ms=900, window_ms=700),)
    assert replay(a_run(varies=True, setup_ns=setup_ns, first=first), reconnect)


@pytest.mark.parametrize(
    "change",
    [
        WhatIfChange(without=frozenset({"profile"}), congestion_control="bbr"),
        dataclasses.replace(BBR, reconnect=True, without=frozenset({"profile"})),
    ],
)
def test_bbr_without_a_delay_is_not_told(change: WhatIfChange) -> None:
    run = a_run(setup_ns={"tcp_handshake": 200 * MS})
    with pytest.raises(UsageError, match="bbr without a delay sends as fast as it has seen"):
        refuse_untold(run, change)


def test_a_run_with_bbr_shows_its_own_pacing() -> None:
    mtls = WhatIfChange(without=frozenset({"mtls"}))
    experiment = {"profile": "net0", "level": 2, "distribution": "iid", "seed": 0}
    assert replay(a_run(congestion_control="bbr", experiment=experiment), mtls)
    with pytest.raises(UsageError, match="bbr without a delay"):
        refuse_untold(a_run(congestion_control="bbr"), WhatIfChange(without=frozenset({"profile"})))


def test_the_reason_is_said_before_any_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["whatif", str(RECORDED), "--congestion-control", "bbr"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "its path's delay varies or loses packets" in shown.err
    assert shown.err.count("\n") == 1
