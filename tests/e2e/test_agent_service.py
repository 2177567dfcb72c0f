"""A whole job whose agent is behind the service: the same run directory as with a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
import pytest

from analysis.ledger.ledger import build_ledger
from tests.e2e.conftest import CLIENTS, Traced
from tests.e2e.losses import assert_nothing_lost
from tests.kernel.agent_service import certificates, service
from ztprobe.agent.interface import Agent
from ztprobe.agent.service.client import AgentClient, Connection
from ztprobe.experiment.names import parse_experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.experiment.run import Job
from ztprobe.experiment.spec import spec_of
from ztprobe.process.interrupts import catching
from ztprobe.progress import QuietProgress
from ztprobe.rundir.batches import BATCHES_DIR
from ztprobe.rundir.store import Run, RunDir, create_run_dir, load_run

ROUNDS = 2
# Whether there are retransmissions, drops or waits for a CPU depends on how busy the machine is.
CERTAIN = ("bursts", "packets", "pairs")


def behind(directory: Path, agent: Callable[[RunDir], AbstractContextManager[Agent]]) -> Run:
    """A run under sec3, so that there are proxies and policies."""
    request = TraceRequest(
        experiment=parse_experiment("net0-sec3", ["net0"]),
        baseline=None,
        rounds=ROUNDS,
        clients=CLIENTS,
        dataset="digits",
        data_dir=None,
        out=directory,
        reconnect=False,
        fl={"client": "synthetic"},
    )
    with catching(lambda _: None):
        Job(spec_of(request, offloads=True), create_run_dir(directory), QuietProgress(), agent=agent).run()
    return load_run(directory)


def kinds(table: pd.DataFrame) -> dict[str, set[object]]:
    """What its events are, pod by pod, without numbers and times."""
    columns = [name for name in ("pod", "kind", "hook", "direction", "process") if name in table]
    return {name: set(table[name]) for name in columns}


@pytest.mark.long
def test_a_job_through_the_service_leaves_the_same_run_directory(
    traced: Callable[[str], Traced], tmp_path: Path
) -> None:
    here = traced("net0-sec3").run
    tls = certificates(tmp_path / "tls")
    with service(tls["agent"], tmp_path / "agent") as served:

        def client(target: RunDir) -> AbstractContextManager[Agent]:
            connection = Connection(served.address, tls["collector"])
            return AgentClient(connection, target.path / BATCHES_DIR, run=target.path.name)

        there = behind(tmp_path / "there", client)
        assert served.end() == ""
    assert not (tmp_path / "agent").exists()

    assert there.meta["hooks"] == here.meta["hooks"]
    assert there.meta["topology"]["serves"] == here.meta["topology"]["serves"]
    assert_nothing_lost(there.meta)
    assert (there.meta["coverage"], there.meta["events_unread"]) == (1, 0)
    assert there.meta["agent_memory"].keys() == here.meta["agent_memory"].keys()
    assert there.events.keys() == here.events.keys()
    for name, table in here.events.items():
        assert list(there.events[name].columns) == list(table.columns), name
        if name in CERTAIN:
            assert kinds(there.events[name]) == kinds(table), name
    assert {event["event"] for event in there.rounds} == {event["event"] for event in here.rounds}
    ledger = build_ledger(there)
    assert [(one.round, one.coverage) for one in ledger.rounds] == [(1, 1), (2, 1)]
