"""Every option of the workload under net0-sec0 and net2-sec3: the ledger closes and shows what it costs.

Bytes and messages are those that the option's parameters predict. Compute is the CPU time that the clients
are given, in the ledger as they log it; what an option adds to it is in both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fl.compression import ENCODINGS, body_bytes
from fl.secure.messages import wire_bytes
from fl.shapes import size_of
from tests.e2e.command import run

pytestmark = pytest.mark.long

SIZE, HEADER_BYTES = size_of("cnn"), 88
MODEL_BYTES = HEADER_BYTES + 4 * SIZE
COMPUTE_MS = 400
KEEPS = 12_000  # values of a top-k update


class Predicted(NamedTuple):
    """What the parameters of an option say of one client's round."""

    up_bytes: int = MODEL_BYTES
    down_bytes: int = MODEL_BYTES
    exchanges: float = 1.0
    clients: int = 3


def compressed(name: str, **others: Any) -> Predicted:
    return Predicted(up_bytes=HEADER_BYTES + body_bytes(ENCODINGS[name], SIZE, KEEPS), **others)


def masked(clients: int) -> Predicted:
    length = wire_bytes(clients=clients, size=SIZE)
    up = sum(length[kind] for kind in ("ADVERTISE", "SHARES", "MASKED", "UNMASK"))
    down = MODEL_BYTES + sum(length[kind] for kind in ("KEYS", "INBOX", "SURVIVORS"))
    return Predicted(up_bytes=up, down_bytes=down, exchanges=4.0, clients=clients)


OPTIONS = {
    "--fl-algorithm fedprox": Predicted(),
    "--fl-algorithm fedadagrad": Predicted(),
    "--fl-algorithm fedadam": Predicted(),
    "--fl-algorithm fedyogi": Predicted(),
    "--fl-aggregation median": Predicted(),
    "--fl-aggregation trimmed-mean": Predicted(),
    "--fl-aggregation krum": Predicted(clients=5),
    "--fl-inspect": Predicted(),
    "--fl-compression fp16": compressed("fp16"),
    "--fl-compression int8": compressed("int8"),
    "--fl-compression top-k": compressed("top-k"),
    "--fl-privacy dp": Predicted(),
    "--fl-secure-aggregation masks": masked(3),
    "--fl-secure-aggregation masks --fl-privacy dp": masked(4),
    "--fl-attack sign-flip": Predicted(),
    "--fl-attack scale": Predicted(),
    "--fl-edges 2": Predicted(),
    "--fl-edges 2 --fl-compression int8": compressed("int8", clients=4),
}
Reported = Callable[[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """``reported("net2-sec3", "--fl-edges 2")``: the report of a short run, traced when first wanted."""
    found: dict[tuple[str, str], dict[str, Any] | None] = {}

    def get(experiment: str, flags: str) -> dict[str, Any]:
        if (experiment, flags) not in found:
            found[experiment, flags] = None
            out: Path = tmp_path_factory.mktemp("options") / "run"
            outcome = run(
                *("trace", "--experiment", experiment, "--no-baseline", "--out", out, "--rounds", "2"),
                *("--clients", str(OPTIONS[flags].clients), *flags.split()),
                *("--fl-client", "synthetic", "--fl-synthetic-compute-ms", str(COMPUTE_MS)),
            )
            assert outcome.status == 0, outcome.stderr
            found[experiment, flags] = json.loads((out / "report.json").read_text())
        report = found[experiment, flags]
        assert report is not None, "it has failed before"
        return report

    return get


@pytest.fixture(params=["net0-sec0", "net2-sec3"])
def experiment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("flags", OPTIONS)
def test_the_ledger_closes_and_no_event_is_lost(reported: Reported, experiment: str, flags: str) -> None:
    report = reported(experiment, flags)
    assert sum(report["loss"].values()) == 0
    for one in report["rounds"]:
        parts_s = sum(one["components"].values()) + one["residual_s"]
        assert parts_s == pytest.approx(one["duration_s"], abs=1e-6)
        assert one["residual_s"] <= 0.05 * one["duration_s"], one["components"]
        assert one["critical_client"].startswith("fl-client-")


@pytest.mark.parametrize("flags", OPTIONS)
def test_bytes_and_messages_are_those_predicted(reported: Reported, experiment: str, flags: str) -> None:
    predicted = OPTIONS[flags]
    for one in reported(experiment, flags)["rounds"]:
        assert one["exchanges"] == predicted.exchanges
        assert len(one["clients"]) == predicted.clients
        for client in one["clients"]:
            assert client["up_bytes"] == pytest.approx(predicted.up_bytes, rel=0.05)
            assert client["down_bytes"] == pytest.approx(predicted.down_bytes, rel=0.05)


@pytest.mark.parametrize("flags", OPTIONS)
def test_compute_is_what_clients_log_and_no_less_than_asked_for(
    reported: Reported, experiment: str, flags: str
) -> None:
    report = reported(experiment, flags)
    assert report["compute_check"]["within_limit"], report["compute_check"]
    for one in report["rounds"]:
        for client in one["clients"]:
            assert client["compute_kernel_s"] >= 0.95 * COMPUTE_MS / 1e3
            assert client["components"]["compute"] >= 0.95 * COMPUTE_MS / 1e3


@pytest.mark.parametrize("flags", [flags for flags in OPTIONS if "edges" in flags])
def test_both_levels_are_on_the_critical_path(reported: Reported, experiment: str, flags: str) -> None:
    report = reported(experiment, flags)
    delay_s = 0.05 if experiment.startswith("net2") else 0.0  # 80 ms with jitter, there and back
    for one in report["rounds"]:
        upper, lower = one["levels"]
        assert (upper["server"], upper["client"]) == ("fl-server", lower["server"])
        assert lower["client"] == one["critical_client"]
        for level in (upper, lower):
            assert level["components"]["propagation"] > 2 * delay_s
            assert (level["components"]["proxy"] > 0) is experiment.endswith("sec3")
        assert upper["components"]["compute"] == 0 < lower["components"]["compute"]
    setup = {one["client"]: one for one in report["connection_setup"]["clients"]}
    assert {"fl-edge-0", "fl-edge-1", "fl-client-0", "fl-client-2"} <= set(setup)
    if experiment.endswith("sec3"):
        assert {one["mutual"] for one in setup.values()} == {"yes"}
        names = [proof["name"] for proof in report["enforcement"]["network_policy"]["proofs"]]
        assert "forbidden: fl-client-0 -> fl-server:50051/tcp" in names
        assert any(name.startswith("allowed: fl-client-0 -> fl-edge-0") for name in names)
