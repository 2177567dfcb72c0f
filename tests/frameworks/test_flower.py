"""Unmodified Flower, traced while it runs: rounds, times, polls and waits against what it wrote itself."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest

from analysis.load import Analysed, load_analysed
from tests.frameworks.figures import EXACT_NS, MS, Figures, figures_of
from tests.frameworks.flower import Flower, Options, clock_of, deployment
from tests.frameworks.hub_log import hub_waits
from tests.frameworks.tracing import traced, truth_of

IDLE_S = 20
# Of the source: between two pulls of replies, of a node's, and between two looks for tasks.
PAUSES_S = {"server": 3.0, "client": 3.0, "task starter": 1.0}
OPTIONS = {
    "http": Options(version="1.42", clients=3, network="loopback", isolation="subprocess", hub_tells=True),
    "http-process": Options(version="1.42", clients=5, network="bridged", isolation="process"),
    "grpc": Options(version="1.38", clients=3, network="bridged", isolation="subprocess"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_rounds_from_the_traffic_alone(kind: str, tmp_path: Path) -> None:
    idle_s = 60 if kind == "http" else IDLE_S
    analysed, clock, figures = run_of(OPTIONS[kind], tmp_path, rounds=4, idle_s=idle_s)
    truth, run = truth_of(clock), analysed.run
    assert run.meta["attachment"]["rounds_from"]["source"] == "traffic"
    assert "inferred" in run.meta["attachment"]["rounds_from"]["detail"]
    # Idle time before and behind the job holds none, and every event says how far off it may be.
    for event in run.rounds:
        assert truth[0].start_ns - EXACT_NS <= event["time_monotonic_ns"] <= truth[-1].end_ns + EXACT_NS
        assert event["time_from"] == "traffic" and event["uncertainty_ns"] > 0
    check(figures)


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "secured"])
@pytest.mark.parametrize("profile", ["net0", "net2"])
@pytest.mark.parametrize("version", ["1.42", "1.38"])
def test_five_clients_in_pods(version: str, profile: str, secured: bool, tmp_path: Path) -> None:
    """Plain, and with NetworkPolicies around them and a proxy with mutual TLS in each."""
    options = Options(
        version=version,
        clients=5,
        profile=profile,
        network_policy=secured,
        mutual_tls=secured,
        hub_tells=True,
    )
    _, _, figures = run_of(options, tmp_path, rounds=3, idle_s=8)
    assert figures.waits
    check(figures)


def test_tasks_that_are_started_from_outside_in_pods(tmp_path: Path) -> None:
    """Flower's other isolation: a SuperExec in each pod starts tasks, behind policies and mutual TLS."""
    options = Options(
        version="1.42",
        clients=5,
        profile="net2",
        isolation="process",
        network_policy=True,
        mutual_tls=True,
        hub_tells=True,
    )
    _, _, figures = run_of(options, tmp_path, rounds=3, idle_s=8)
    assert figures.waits
    check(figures)


@pytest.mark.parametrize("buffered", [False, True], ids=["as-it-comes", "kept-back"])
def test_rounds_that_the_log_names(buffered: bool, tmp_path: Path) -> None:
    """What `flwr run --stream` prints carries no time, and comes late: at the very end, printed to a file."""
    options = Options(version="1.42", clients=3)
    analysed, _, figures = run_of(options, tmp_path, rounds=3, log=True, buffered=buffered)
    attachment = analysed.run.meta["attachment"]
    assert attachment["rounds_from"]["source"] == "log"
    assert attachment["framework"]["name"] == "flower"
    ends = [event for event in analysed.run.rounds if event["event"] == "round_end"]
    assert all(event["results"] == 3 and event["failures"] == 0 for event in ends)
    check(figures)


def run_of(
    options: Options,
    directory: Path,
    *,
    rounds: int,
    idle_s: float = IDLE_S,
    log: bool = False,
    buffered: bool = False,
) -> tuple[Analysed, list[dict[str, object]], Figures]:
    """A traced job, with idle time around it.

    :returns: the run, what the app noted, and one against the other
    """
    out = directory / "run"
    with deployment(directory / "flower", options) as flower:
        flower.run_log.touch()
        more = ["--events-from", str(flower.run_log)] if log else []
        with traced(flower.superlink.pid, flower.targets, out, *more):
            time.sleep(idle_s)
            job = flower.start_run(buffered=buffered, num_server_rounds=rounds, examples=96)
            flower.wait(job, timeout_s=180 * rounds)
            time.sleep(idle_s)
        if flower.pods is not None:
            flower.pods.emulator.check()
        if options.network_policy:
            assert flower.pods is not None and flower.pods.policy_counters()["established"] > 0
    analysed, clock = load_analysed(out), clock_of(flower.clock_directory)
    hosts = flower.supernodes if options.has_hosts else ()
    addresses = {node.address: number for number, node in enumerate(hosts)}
    waits = hub_waits(directory / "flower" / "logs", addresses) if options.hub_tells else []
    figures = figures_of(analysed, clock, names_of(analysed, flower), waits)
    figures.save(directory / "figures.json")
    print(figures)
    return analysed, clock, figures


def names_of(analysed: Analysed, flower: Flower) -> dict[int, str]:
    """Client's number -> what the run calls it."""
    targets = flower.targets
    told = [targets[i + 1] for i, word in enumerate(targets) if word == "--client"]
    by_target = {one["target"]: one["name"] for one in analysed.run.meta["attachment"]["participants"]}
    return {number: by_target[target] for number, target in enumerate(told)}


def check(figures: Figures) -> None:
    """What is asked of every run; everything that does not hold is said at once."""
    wrong = []
    if figures.joined < 0.99 * figures.rounds:
        wrong.append(f"{figures.joined} of {figures.rounds} rounds were joined")
    if max(figures.boundaries_ms, default=0) > EXACT_NS / MS:
        wrong.append(f"boundaries are {figures.boundaries_ms} ms off")
    if statistics.median(figures.residual_pct) > 5:
        wrong.append(f"residuals are {figures.residual_pct} %")
    wrong += [f"{one}" for one in figures.trainings if not one.is_right]
    for who, pause_s in figures.pauses_s.items():
        kind = next((kind for kind in PAUSES_S if who == kind or who.endswith(kind)), "client")
        if abs(pause_s - PAUSES_S[kind]) > 0.05 * PAUSES_S[kind]:
            wrong.append(f"{who} polls every {pause_s} s")
    if "server" not in figures.pauses_s:
        wrong.append("no poll of the server's was seen")
    wrong += [f"{one}" for one in figures.waits if one.off_ms > EXACT_NS / MS]
    if figures.by_traffic_right < 0.95 * figures.rounds or figures.by_traffic_invented:
        wrong.append(
            f"traffic alone told {figures.by_traffic_right} of {figures.rounds} rounds"
            f" and {figures.by_traffic_invented} that were none"
        )
    assert not wrong, "\n".join(wrong)
