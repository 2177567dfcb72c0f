"""What the agent of a node with fifty pods takes while FL rounds go on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.losses import assert_nothing_lost
from tests.kernel.agent_service import certificates, service
from tests.kernel.agent_use import AgentUse, maps_bytes, processes_below, resident_bytes
from tests.kernel.test_agent_service import status
from tests.prometheus import free_port
from ztprobe.agent.service.client import AgentClient, Connection
from ztprobe.experiment.names import parse_experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.experiment.run import Job
from ztprobe.experiment.spec import spec_of
from ztprobe.process.interrupts import catching
from ztprobe.progress import QuietProgress
from ztprobe.rundir.batches import BATCHES_DIR
from ztprobe.rundir.store import Run, RunDir, create_run_dir, load_run
from ztprobe.runtime.interface import Runtime

pytestmark = pytest.mark.long

CLIENTS, ROUNDS = 50, 8
# Of CPU time a client and round: on two cores that makes rounds of 4 s when nobody else wants them.
COMPUTE_MS = 100.0
CORE_SHARE, RESIDENT_BYTES, MAPS_BYTES = 0.03, 128 << 20, 64 << 20


class Watched:
    """Looks at the agent while the rounds go on (`ztprobe.experiment.spec.Interference`)."""

    def __init__(self, pid: int, ask: Any) -> None:
        self.use = AgentUse(pid)
        self._ask = ask
        self.said: dict[str, Any] = {}
        self.counted: dict[str, int] = {}

    def prepare(self, runtime: Runtime) -> None:
        """See `Interference`."""

    @contextlib.contextmanager
    def during(self, runtime: Runtime) -> Iterator[None]:
        with self.use:
            yield
        self.said = self._ask()
        service_pid, *below = processes_below(self.use.pid)
        self.counted = {"all": resident_bytes(service_pid, *below)}
        self.counted |= {"service": resident_bytes(service_pid), "probes": resident_bytes(*below)}
        self.counted["maps"] = maps_bytes(*below)


def between_rounds(run: Run) -> tuple[int, int]:
    """From the second round's beginning to the last one's end: the first holds what is done once."""
    begun = [event["time_monotonic_ns"] for event in run.rounds if event["event"] == "round_start"]
    ended = [event["time_monotonic_ns"] for event in run.rounds if event["event"] == "round_end"]
    assert len(begun) == len(ended) == ROUNDS
    return begun[1], ended[-1]


def test_the_agent_of_a_node_with_fifty_pods(tmp_path: Path) -> None:
    tls, metrics = certificates(tmp_path / "tls"), f"127.0.0.1:{free_port()}"
    request = TraceRequest(
        experiment=parse_experiment("net0-sec0", ["net0"]),
        baseline=None,
        rounds=ROUNDS,
        clients=CLIENTS,
        dataset="digits",
        data_dir=None,
        out=tmp_path / "run",
        reconnect=False,
        fl={"client": "synthetic", "synthetic_compute_ms": COMPUTE_MS},
    )
    with service(tls["agent"], tmp_path / "agent", "--metrics", metrics) as served:

        def client(target: RunDir) -> AbstractContextManager[AgentClient]:
            connection = Connection(served.address, tls["collector"])
            return AgentClient(connection, target.path / BATCHES_DIR, run=target.path.name)

        watched = Watched(served.process.pid, lambda: status(served.address, tls["collector"]))
        spec, target = spec_of(request, offloads=True), create_run_dir(tmp_path / "run")
        with catching(lambda _: None):
            Job(spec, target, QuietProgress(), interference=watched, agent=client).run()
    run = load_run(tmp_path / "run")
    from_ns, to_ns = between_rounds(run)
    samples = watched.use.between(from_ns, to_ns)
    first, last = samples[0], samples[-1]
    processes = (last.cpu_s - first.cpu_s) / (last.at_ns - first.at_ns) * 1e9
    # In whatever process they ran; a mean of the whole run.
    programs = sum(one["run_time_ns"] for one in run.meta["probes"]) / run.meta["wall_ns"]
    resident, maps = (max(getattr(one, what) for one in samples) for what in ("resident_bytes", "maps_bytes"))
    print(
        f"{CLIENTS} clients, rounds of {(to_ns - from_ns) / 1e9 / (ROUNDS - 1):.1f} s, "
        f"load {os.getloadavg()[0]:.0f}: agent {processes:.2%} of a core, its programs {programs:.2%}, "
        f"{resident / 2**20:.1f} MiB resident (first {first.resident_bytes / 2**20:.1f}, "
        f"service {watched.counted['service'] / 2**20:.1f}, probes {watched.counted['probes'] / 2**20:.1f}), "
        f"{maps / 2**20:.1f} MiB of maps, {run.meta['events_seen']:,} events"
    )
    assert processes + programs < CORE_SHARE
    assert 40 << 20 < resident <= RESIDENT_BYTES
    assert 32 << 20 < maps <= MAPS_BYTES
    assert_nothing_lost(run.meta)
    assert len(run.meta["pods"]) > CLIENTS
    # What the agent says of itself is that.
    (session,) = watched.said["sessions"]
    assert len(session["pods"]) == CLIENTS + 1
    assert session["memory"]["kernel_maps_bytes"] == watched.counted["maps"]
    assert session["memory"]["resident_bytes"] == pytest.approx(watched.counted["probes"], rel=0.05)
    assert watched.said["memory"]["resident_bytes"] == pytest.approx(watched.counted["service"], rel=0.05)
    assert watched.said["resident_bytes"] == pytest.approx(watched.counted["all"], rel=0.05)
