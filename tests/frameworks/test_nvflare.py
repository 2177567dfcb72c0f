"""Unmodified NVIDIA FLARE, traced while it runs: its log against its traffic and its clients' clock."""

from __future__ import annotations

from pathlib import Path

from analysis.load import load_analysed
from tests.frameworks.figures import from_traffic, rounds_of
from tests.frameworks.flower import clock_of
from tests.frameworks.nvflare import deployment
from tests.frameworks.tracing import traced

MS = 1_000_000
ROUNDS = 6


def test_rounds_by_its_log_and_by_its_traffic(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with deployment(tmp_path / "nvflare", rounds=ROUNDS) as nvflare:
        targets = ["--server", f"pid:{nvflare.server_pid}"]
        targets += [word for pid in nvflare.client_pids for word in ("--client", f"pid:{pid}")]
        with traced(nvflare.server_pid, targets, out, "--events-from", str(nvflare.server_log)):
            nvflare.wait(timeout_s=240)
        clock = clock_of(nvflare.clock_directory)
    run = load_analysed(out).run
    attachment = run.meta["attachment"]
    assert attachment["framework"]["name"] == "nvflare" and attachment["framework"]["version"] == "2.9.0"
    assert (
        attachment["rounds_from"]["source"] == "log" and attachment["rounds_from"]["uncertainty_ns"] < 10 * MS
    )
    by_log = rounds_of(run.rounds)
    # The job starts as soon as the deployment is up, and the trace a moment later.
    assert len(by_log) >= ROUNDS // 2 and sorted(by_log) == list(range(min(by_log), ROUNDS))
    for event in clock:  # both are in the same clock, which no log line passed through
        if event["round"] in by_log:
            start_ns, end_ns = by_log[event["round"]]
            assert start_ns - 10 * MS <= event["time_monotonic_ns"] <= end_ns + 10 * MS
    by_traffic = sorted(rounds_of(from_traffic(out).rounds).values())[-len(by_log) :]
    assert len(by_traffic) == len(by_log)
    for (start_ns, _), (_, told) in zip(by_traffic, sorted(by_log.items()), strict=True):
        # Clients ask for their task every two seconds: models leave up to that much after the round began.
        assert told[0] - 10 * MS <= start_ns <= told[0] + 2_500 * MS
