"""Looks at pods on several nodes: on their way from agents, put together, and what stalls are made of."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any, cast

from tests.unit.test_stalls import end
from ztprobe.agent.interface import NodeView
from ztprobe.agent.node_view_calls import NODE_VIEW_CALLS, NodeViewCaller
from ztprobe.agent.service.node_session import NodeSession, process_number
from ztprobe.agent.stall_snapshot import ProcessLook, StallLook
from ztprobe.attach.attached_stalls import AttachedStalls
from ztprobe.attach.rounds import Rounds
from ztprobe.experiment.nodes.looks import look_at_nodes

PID = 4711


def of_pod(pod: str, address: str, *ends: Any, cpu_s: float = 1.0, state: str = "S") -> StallLook:
    process = ProcessLook(container="app", cpu_s=cpu_s, state=state, started_s=3.0)
    return StallLook(
        at_s=7.0,
        addresses={address: pod},
        ends={pod: ends},
        processes={pod: {PID: process}},
        limits={pod: {"tcp_retries2": 15}},
    )


# The server has sent, and its client has had it for half a minute.
SERVER = of_pod("server", "10.0.0.1", end("10.0.0.1", 50051, "10.0.0.2", 4000, received_age_s=60.0))
CLIENT = of_pod("client", "10.0.0.2", end("10.0.0.2", 4000, "10.0.0.1", 50051), state="T")


class Carried(NodeViewCaller):
    """A view whose answers have been on the way as JSON."""

    def __init__(self, found: StallLook) -> None:
        self._found = cast(NodeView, SimpleNamespace(stall_look=lambda: found))

    def _ask(self, call: str, **arguments: Any) -> Any:
        return json.loads(json.dumps(NODE_VIEW_CALLS[call](self._found, arguments)))


def session(found: StallLook, now_ns: int) -> NodeSession:
    return cast(NodeSession, SimpleNamespace(client=Carried(found), now_ns=now_ns))


def test_a_look_comes_as_it_was_taken() -> None:
    assert Carried(CLIENT).stall_look() == CLIENT


def test_looks_of_nodes_are_one_by_the_server_s_clock() -> None:
    whole = look_at_nodes([session(SERVER, 90 * 10**9), session(CLIENT, 5 * 10**9)])
    assert whole.at_s == 90.0
    assert whole.addresses == {"10.0.0.1": "server", "10.0.0.2": "client"}
    assert whole.ends == {**SERVER.ends, **CLIENT.ends}
    # A number of one node may be another's, too.
    assert {pod: list(running) for pod, running in whole.processes.items()} == {
        "server": [PID],
        "client": [process_number(PID, 1)],
    }
    assert set(whole.limits) == {"server", "client"}


class Looks:
    """One of both nodes after the other."""

    def __init__(self) -> None:
        self.now_ns = 100 * 10**9

    def __call__(self) -> StallLook:
        return look_at_nodes([session(SERVER, self.now_ns), session(CLIENT, 5 * 10**9)])

    def overdue(self, watched: AttachedStalls, rounds: Any) -> Any:
        self.now_ns += 10**9
        return watched.overdue(self.now_ns / 1e9, cast(Rounds, rounds))


def test_who_waits_and_what_keeps_whom_is_said_once_of_pods_on_two_nodes() -> None:
    looks = Looks()
    watched = AttachedStalls(looks, lambda: (["server"], ["client"]), since_s=100.0, after_s=4.0)
    rounds = SimpleNamespace(events=[], between=False, now=3)
    found = [looks.overdue(watched, rounds) for _ in range(8)]
    (stall,) = [one for one in found if one is not None]
    assert found.index(stall) == 4  # the first look is what others are held against
    assert (stall.round, stall.waiting, stall.waits_for) == (3, "server", ("client",))
    assert stall.states["client"] == "stopped by a signal"
    assert stall.at_s - stall.since_s == 4.0
    assert watched.found == [stall]
    rounds.events.append({"event": "round_end"})  # then it went on
    assert sum(looks.overdue(watched, rounds) is not None for _ in range(8)) == 1
    rounds.between = True
    rounds.events.append({"event": "round_end"})
    assert all(looks.overdue(watched, rounds) is None for _ in range(8))


def test_a_client_that_trains_is_waited_for() -> None:
    looks = Looks()
    used = iter(range(100))

    def look() -> StallLook:
        whole = looks()
        process = dataclasses.replace(CLIENT.processes["client"][PID], cpu_s=float(next(used)), state="R")
        return dataclasses.replace(
            whole, processes={**whole.processes, "client": {process_number(PID, 1): process}}
        )

    watched = AttachedStalls(look, lambda: (["server"], ["client"]), since_s=100.0, after_s=4.0)
    rounds = SimpleNamespace(events=[], between=False, now=3)
    assert all(looks.overdue(watched, rounds) is None for _ in range(12))
