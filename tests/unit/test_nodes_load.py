"""Several nodes' records of what else they do, put together; nodes that share a kernel have one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ztprobe.agent.interface import LoadPart
from ztprobe.agent.service.node_session import NodeSession
from ztprobe.errors import EnforcementError
from ztprobe.experiment.nodes.load import NodesLoad, joined
from ztprobe.process.identity import MachineProcess, boot_id
from ztprobe.rundir.clock import Clock, ClockSample

S = 10**9
HALF = S // 2
TASKS = 900_000_000  # of two CPUs, in half a second


def row(from_ns: int, deployment: int, ztprobe: int = 0) -> dict[str, Any]:
    known = {"tasks_ns": TASKS, "deployment_ns": deployment, "ztprobe_ns": ztprobe, "kernel_ns": 0}
    rest = {"steal_ns": 0, "available_bytes": 8 << 30, "load_1m": 1.0, "frequency_khz": None}
    stalls = dict.fromkeys(("cpu_stalled_ns", "memory_stalled_ns", "io_stalled_ns"), 0)
    times = {"from_ns": from_ns, "to_ns": from_ns + HALF, "foreign_ns": TASKS - deployment - ztprobe}
    return {**times, **known, **rest, **stalls}


def record(*deployment: int, begins: int = 10 * S, ztprobe: int = 0) -> list[dict[str, Any]]:
    return [row(begins + number * HALF, one, ztprobe) for number, one in enumerate(deployment)]


class Client:
    """An agent's, whose record grows by a row each time."""

    def __init__(self, rows: list[dict[str, Any]], boot: str, cpus: int = 2) -> None:
        self.rows, self.boot, self.cpus, self.told = rows, boot, cpus, 0
        self.ours: list[MachineProcess] | None = None
        self.is_gone = self.is_over = False

    def record_load(self, ours: list[MachineProcess]) -> str:
        self.ours = ours
        return self.boot

    def load(self, after: int, *, last: bool = False) -> LoadPart:
        if self.is_gone:
            raise EnforcementError("the agent has ended before its time")
        assert after == self.told  # whatever has been told is forgotten
        self.told = len(self.rows) if last else min(len(self.rows), after + 1)
        self.is_over = last
        facts = {"cpus": self.cpus, "cpu_model": "One", "source": "cgroup2", "problem": None}
        return LoadPart(rows=self.rows[after : self.told], facts=facts, cpu_ns=self.told)

    def busiest(self) -> str:
        return f"make (pid {self.cpus})"


def session(name: str, client: Client, ahead_ns: int = 0) -> NodeSession:
    """:param ahead_ns: of its monotonic clock, before the server's node's."""
    sample = ClockSample(time_monotonic_ns=S + ahead_ns, time_unix_ns=1_000 * S)
    made = SimpleNamespace(name=name, client=client, clock=Clock([sample]), is_lost=False)
    made.named = lambda why: f"node {name}: {why}"
    return cast(NodeSession, made)


def test_what_another_agent_under_the_kernel_watches_is_not_foreign() -> None:
    (first, second, third) = joined(
        [record(100, 200, 300, 0), record(400, 500, 600, begins=10 * S, ztprobe=50)]
    )
    assert (first["deployment_ns"], first["ztprobe_ns"]) == (500, 50)
    assert (second["deployment_ns"], third["deployment_ns"]) == (700, 900)
    for one in (first, second, third):
        assert one["foreign_ns"] == TASKS - one["deployment_ns"] - one["ztprobe_ns"]


def test_intervals_of_two_agents_need_not_begin_together() -> None:
    rows = joined([record(0, 0, 0), record(1_000, 2_000, 3_000, begins=10 * S - HALF // 2)])
    # The other ends a quarter of a second earlier, and with it what is known.
    assert [(one["from_ns"], one["to_ns"]) for one in rows] == [
        (10 * S, 10 * S + HALF),
        (10 * S + HALF, 11 * S),
        (11 * S, 11 * S + HALF // 2),
    ]
    assert [one["deployment_ns"] for one in rows] == [1_500, 2_500, 1_500]
    assert [one["tasks_ns"] for one in rows] == [TASKS, TASKS, TASKS // 2]
    assert rows[-1]["foreign_ns"] == TASKS // 2 - 1_500
    assert rows[-1]["available_bytes"] == 8 << 30


def test_before_all_record_and_after_one_has_ended_nothing_is_known() -> None:
    rows = joined([record(1, 1, 1, 1, 1, 1), record(1, 1, begins=11 * S)])
    assert [one["from_ns"] for one in rows] == [11 * S, 11 * S + HALF]
    assert joined([record(1, 1), []]) == []


def test_each_node_has_rows_in_the_time_of_the_server_s() -> None:
    ahead_ns = 5_000 * S
    server = Client(record(100, 100), "boot-a")
    other = Client(record(200, 200, begins=10 * S + ahead_ns), "boot-b", cpus=8)
    with NodesLoad([session("alpha", server), session("beta", other, ahead_ns)]) as load:
        load.stop()
        table, facts = load.table(), load.facts()
    assert server.is_over and other.is_over
    assert table.groupby("node")["deployment_ns"].sum().to_dict() == {"alpha": 200, "beta": 400}
    for name in ("alpha", "beta"):
        assert table[table["node"] == name]["from_ns"].tolist() == [10 * S, 10 * S + HALF]
        assert table[table["node"] == name]["to_ns"].tolist() == [10 * S + HALF, 11 * S]
    assert facts["cpus"] == 2
    assert [(one["node"], one["cpus"], one["same_kernel_as"]) for one in facts["nodes"]] == [
        ("alpha", 2, []),
        ("beta", 8, []),
    ]
    assert load.cpu_ns == 4
    assert load.problem is None


def test_rows_during_which_a_wall_clock_was_set_back_are_left_out() -> None:
    other = session("beta", Client(record(1, 1, 1, 1), "boot-b"))
    steps = [(0, 1_000), (10_500, 1_010_500), (10_900, 1_009_000), (20_000, 1_018_100)]  # milliseconds
    other.clock = Clock(  # type: ignore[misc]
        [ClockSample(time_monotonic_ns=at * 10**6, time_unix_ns=unix * 10**6) for at, unix in steps]
    )
    with NodesLoad([session("alpha", Client(record(1, 1, 1, 1), "boot-a")), other]) as load:
        load.stop()
        table = load.table()
    assert (table["to_ns"] > table["from_ns"]).all()
    assert table.groupby("node").size().to_dict() == {"alpha": 4, "beta": 3}


def test_nodes_under_one_kernel_have_one_record() -> None:
    server, other = Client(record(100, 100), "boot-a"), Client(record(200, 200), "boot-a")
    with NodesLoad([session("alpha", server), session("beta", other)]) as load:
        load.stop()
        table, facts = load.table(), load.facts()
    assert table.groupby("node")["deployment_ns"].sum().to_dict() == {"alpha": 600, "beta": 600}
    assert table.groupby("node")["foreign_ns"].sum().nunique() == 1
    assert [one["same_kernel_as"] for one in facts["nodes"]] == [["beta"], ["alpha"]]


def test_this_command_is_ztprobe_s_to_one_agent_under_its_kernel() -> None:
    away, here, too = (Client(record(1), boot) for boot in ("elsewhere", boot_id(), boot_id()))
    with NodesLoad([session(str(number), one) for number, one in enumerate((away, here, too))]):
        pass
    assert away.ours == here.ours == [MachineProcess.own()]
    assert too.ours == []
    assert MachineProcess.own().is_here


def test_the_node_that_others_use_most_is_told_of() -> None:
    quiet, busy = Client(record(TASKS, TASKS), "boot-a"), Client(record(0, 0), "boot-b", cpus=4)
    with NodesLoad([session("alpha", quiet), session("beta", busy)]) as load:
        assert load.foreign_share(3.0) == pytest.approx(TASKS / (HALF * 4))
        assert (load.where, load.busiest()) == ("node beta", "make (pid 4)")


def test_an_agent_that_has_gone_ends_its_record_and_no_more() -> None:
    server, other = Client(record(1, 1, 1), "boot-a"), Client(record(2, 2, 2), "boot-b")
    sessions = [session("alpha", server), session("beta", other)]
    with NodesLoad(sessions) as load:
        load.renew()
        other.is_gone = True
        load.stop()
    assert load.table().groupby("node").size().to_dict() == {"alpha": 3, "beta": 1}
    assert load.problem == "node beta: the agent has ended before its time"
    assert load.facts()["nodes"][1]["problem"] == "the agent has ended before its time"
    assert load.foreign_share(3.0) is not None
