"""The sentence names the largest cause that was injected, and an action that fits it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from analysis.ledger.model import Ledger
from analysis.report.report import build_report
from tests.unit.synthetic_run import MS, NET0_SEC0, baseline_pair, make_ledger, make_run

QUIET = {"server": 20.0, "compute": 100.0, "propagation": 10.0, "transmission": 30.0}


def sentence(ledger: Ledger, *, baseline: bool = False, **changes: Any) -> str:
    report = build_report(make_run(ledger=ledger, **changes), ledger, baseline_pair() if baseline else None)
    said: str = report["diagnosis"]
    assert said.endswith(".")
    assert "\n" not in said
    assert ". " not in said
    return said


def with_sub_rows(ledger: Ledger, component: str, row: str | None) -> Ledger:
    """The same ledger, with all of ``component`` in ``row``, or in none."""
    rounds = []
    for one in ledger.rounds:
        rows = {row: one.components_ns[component]} if row else {}
        rounds.append(replace(one, sub_rows_ns={**one.sub_rows_ns, component: rows}))
    return replace(ledger, rounds=tuple(rounds))


@pytest.mark.parametrize(
    ("component", "row", "named", "action"),
    [
        ("compute", None, "Compute is the largest", "fewer local steps"),
        ("compute", "cpu_wait", "mostly waiting for a CPU", "more cores"),
        ("server", "evaluation", "mostly evaluation", "evaluate less often"),
        ("server", "aggregation", "mostly aggregation", "aggregate updates as they arrive"),
        ("server", "send_preparation", "mostly send preparation", "once a round instead of once a client"),
        (
            "server",
            "behind_other_clients",
            "mostly waiting behind other clients",
            "send to all clients at once",
        ),
        ("transmission", "congestion_window", "congestion window", "tcp_slow_start_after_idle=0"),
        ("transmission", "rate_or_queue", "the path's rate or a queue", "raise the rate"),
        ("transmission", "receive_or_http2_window", "receiver's window", "tcp_rmem"),
        ("transmission", "shared_egress", "shared egress", "stagger the clients"),
        ("transmission", None, "Transmission is the largest", "send fewer bytes"),
        ("propagation", None, "Propagation is the largest", "fewer messages a round or a nearer server"),
        ("proxy", "cpu_wait", "Proxy is the largest", "reserve one"),
        ("proxy", None, "Proxy is the largest", "sidecars more CPU"),
        ("dns", None, "DNS is the largest", "ndots"),
        ("retransmission", None, "Retransmission is the largest", "BBR"),
        ("policy_drop", None, "Policy drop is the largest", "ports and selectors"),
    ],
)
def test_the_largest_part_is_named_with_something_to_try(
    component: str, row: str | None, named: str, action: str
) -> None:
    ledger = with_sub_rows(make_ledger({**QUIET, component: 3000.0}), component, row)
    said = sentence(ledger)
    assert named in said
    assert action in said


def test_a_handshake_every_round_asks_to_keep_the_channel() -> None:
    ledger = make_ledger({**QUIET, "tls_handshake": 3000.0})
    assert "keep it open between rounds" in sentence(ledger, options={"reconnect": True})
    assert "find out who closes them" in sentence(ledger, options={"reconnect": False})


def test_warm_windows_are_not_recommended_twice() -> None:
    ledger = with_sub_rows(
        make_ledger({**QUIET, "transmission": 3000.0}), "transmission", "congestion_window"
    )
    said = sentence(ledger, facts={"sysctls": {"net.ipv4.tcp_slow_start_after_idle": "0"}})
    assert "tcp_slow_start_after_idle" not in said
    assert "initial window" in said


def test_what_makes_rounds_longer_than_the_baseline_is_the_cause() -> None:
    """Compute stays largest, but it is the transmission that the profile added."""
    ledger = with_sub_rows(
        make_ledger({**NET0_SEC0, "transmission": 1000.0}), "transmission", "congestion_window"
    )
    said = sentence(ledger, baseline=True)
    assert "longer than under net0-sec0" in said
    assert "transmission" in said
    assert "compute remains the largest part" in said
    assert "tcp_slow_start_after_idle=0" in said


def test_largest_part_and_largest_overhead_may_be_one() -> None:
    said = sentence(make_ledger(), baseline=True)
    assert said.startswith("Transmission is the largest part of a round")
    assert "most of what it takes longer" in said


def test_a_part_is_never_said_to_be_larger_than_its_whole() -> None:
    """Training that is faster than under the baseline makes a round gain less than its transmission."""
    quick = make_ledger({**NET0_SEC0, "compute": 300.0, "transmission": 1500.0})
    said = sentence(with_sub_rows(quick, "transmission", "congestion_window"), baseline=True)
    found = re.search(
        r"and takes ([\d.]+) s longer than under net0-sec0, a whole round ([\d.]+) (m?s) lo", said
    )
    assert found, said
    assert float(found[1]) > float(found[2]) * (1e-3 if found[3] == "ms" else 1)


def test_no_clear_overhead_is_said() -> None:
    said = sentence(make_ledger(NET0_SEC0, seed=5, tls=False), baseline=True)
    assert "no clear difference from net0-sec0" in said
    assert said.startswith("Compute is the largest")


def test_few_rounds_leave_a_faster_run_open() -> None:
    ledger = make_ledger({**NET0_SEC0, "compute": 700.0}, rounds=3, tls=False)
    assert "too few rounds to tell the difference from net0-sec0 (−" in sentence(ledger, baseline=True)


def test_a_faster_run_is_called_shorter() -> None:
    said = sentence(make_ledger({**NET0_SEC0, "compute": 700.0}, tls=False), baseline=True)
    assert "shorter than under net0-sec0" in said


def test_what_nothing_explains_is_said() -> None:
    ledger = make_ledger(QUIET)
    unexplained = tuple(
        replace(one, duration_ns=one.duration_ns + 1000 * MS, residual_ns=one.residual_ns + 1000 * MS)
        for one in ledger.rounds
    )
    assert sentence(replace(ledger, rounds=unexplained)).startswith("Residual is the largest")
    some = tuple(
        replace(one, duration_ns=one.duration_ns + 20 * MS, residual_ns=one.residual_ns + 20 * MS)
        for one in ledger.rounds
    )
    assert "but nothing explains" in sentence(replace(ledger, rounds=some))
