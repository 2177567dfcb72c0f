"""Traced runs with options of the workload: the ledger closes, and the bytes are those predicted."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from analysis.contention import of_round
from fl.compression import ENCODINGS, body_bytes
from fl.secure.messages import wire_bytes
from fl.shapes import size_of
from tests.e2e.conftest import CLIENTS, Traced
from tests.e2e.losses import assert_nothing_lost
from ztprobe.events.kinds import Direction, Hook

SIZE, HEADER_BYTES = size_of("cnn"), 88
SECURE = wire_bytes(clients=CLIENTS, size=SIZE)
MODEL_BYTES = HEADER_BYTES + 4 * SIZE

RUNS = {
    "net0-sec0 --fl-secure-aggregation masks": (
        "fl-client",
        sum(SECURE[kind] for kind in ("ADVERTISE", "SHARES", "MASKED", "UNMASK")),
        MODEL_BYTES + sum(SECURE[kind] for kind in ("KEYS", "INBOX", "SURVIVORS")),
    ),
    # The clients' updates are bytes, what an edge makes of them is a model.
    "net0-sec1 --fl-edges 2 --fl-compression int8": (
        "fl-client",
        HEADER_BYTES + body_bytes(ENCODINGS["int8"], SIZE, 0),
        None,
    ),
    "net0-sec0 --fl-client synthetic --fl-compression top-k": (
        "fl-client",
        HEADER_BYTES + body_bytes(ENCODINGS["top-k"], SIZE, 12_000),
        MODEL_BYTES,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_ledger_closes_and_nothing_is_lost(traced: Callable[[str], Traced], name: str) -> None:
    one = traced(name)
    for each in one.ledger.rounds:
        assert sum(each.components_ns.values()) + each.residual_ns == each.duration_ns
        assert each.residual_ns <= 0.05 * each.duration_ns
    assert_nothing_lost(one.report)


@pytest.mark.parametrize("name", RUNS)
def test_bytes_on_the_wire(traced: Callable[[str], Traced], name: str) -> None:
    role, up_bytes, down_bytes = RUNS[name]
    run = traced(name).run
    number = max(e["round"] for e in run.rounds if e["event"] == "round_start")
    (start_ns,) = (
        e["time_monotonic_ns"] for e in run.rounds if e["event"] == "round_start" and e["round"] == 2
    )
    (end_ns,) = (
        e["time_monotonic_ns"] for e in run.rounds if e["event"] == "round_end" and e["round"] == number
    )
    bursts = run.events["bursts"]
    sent = bursts[
        (bursts.hook == Hook.ETH)
        & (bursts.direction == Direction.TX)
        & (bursts.first_ns >= start_ns)
        & (bursts.first_ns < end_ns)
    ]
    messages = (number - 1) * CLIENTS
    up = sent[sent.pod.str.startswith(role)].bytes.sum() / messages
    assert up == pytest.approx(up_bytes, rel=0.05)
    if down_bytes is not None:
        down = sent[sent.pod == "fl-server"].bytes.sum() / messages
        assert down == pytest.approx(down_bytes, rel=0.05)


def test_the_critical_path_goes_through_an_edge(traced: Callable[[str], Traced]) -> None:
    one = traced("net0-sec1 --fl-edges 2 --fl-compression int8")
    for each in one.report["rounds"]:
        (edge,) = each["critical_through"]
        assert edge == f"fl-edge-{int(each['critical_client'][-1]) * 2 // CLIENTS}"
        ends = [(level["server"], level["client"]) for level in each["levels"]]
        assert ends == [("fl-server", edge), (edge, each["critical_client"])]
        for level in each["levels"]:
            assert level["components"]["propagation"] > 0
            assert level["components"]["transmission"] > 0
        upper, lower = (level["components"] for level in each["levels"])
        assert upper["compute"] == 0 < lower["compute"]
        assert len(each["clients"]) == CLIENTS
    names = [proof["name"] for proof in one.report["enforcement"]["network_policy"]["proofs"]]
    assert any(name.startswith("allowed: fl-edge-0 -> fl-server:50051") for name in names)


def test_the_baseline_is_the_same_without_the_options(traced: Callable[[str], Traced]) -> None:
    overhead = traced("net0-sec0 --fl-client synthetic --fl-compression top-k").report["overhead"]
    assert overhead["baseline"] == "net0-sec0 without --fl-client synthetic --fl-compression top-k"
    assert overhead["components"]["compute"]["delta_s"] < 0


@pytest.mark.long
def test_compute_is_the_cpu_time_that_was_asked_for(traced: Callable[[str], Traced]) -> None:
    """But for waiting for a CPU, which stands beside it, and for what a hypervisor took of it, at most."""
    one = traced("net0-sec0 --fl-client synthetic --fl-synthetic-compute-ms 1500")
    cpus = one.report["contention"]["run"]["cpus"]
    ran_s, stolen_s = [], []
    for each in one.ledger.rounds:
        ran_s.append((each.components_ns["compute"] - each.sub_rows_ns["compute"].get("cpu_wait", 0)) / 1e9)
        around = of_round(one.run.events["machine"], each, cpus)
        assert around is not None
        stolen_s.append(around["steal_s"])
    unstolen_s = [ran - stolen for ran, stolen in zip(ran_s, stolen_s, strict=True)]
    assert statistics.median(ran_s) >= 0.95 * 1.5, (ran_s, stolen_s)
    assert statistics.median(unstolen_s) <= 1.05 * 1.5, (ran_s, stolen_s)


def test_the_report_says_what_the_workload_said(traced: Callable[[str], Traced]) -> None:
    workload = traced("net0-sec0 --fl-secure-aggregation masks").report["workload"]
    assert workload["data_reader"] == "scikit-learn"
    assert workload["options"]["secure_aggregation"] == "masks"
    assert workload["secure_aggregation"]["dropped"] == {}
    exchanges = workload["secure_aggregation"]["exchange_median_s"]
    assert set(exchanges) == {"ADVERTISE", "SHARES", "MASKED", "UNMASK"}
    assert max(exchanges, key=lambda kind: exchanges[kind]) == "MASKED"  # training lies in it
