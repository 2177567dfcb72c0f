"""What is a stall and what is said of it, from looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ztprobe.agent.stall_snapshot import ProcessLook, StallLook
from ztprobe.agent.stalls import StallWatch, Standing, Timeout, stall_words, standings
from ztprobe.attach.attached_stalls import who_waits
from ztprobe.experiment.stall_watch import RunStalls
from ztprobe.kernelnet.tcp_ends import PROBE_TIMER, RETRANSMIT_TIMER, TcpEnd

ADDRESSES = {"10.0.0.1": "server", "10.0.0.2": "client-0", "10.0.0.3": "client-1"}


def end(local: str, local_port: int, remote: str, remote_port: int, **values: Any) -> TcpEnd:
    quiet = {
        "state": "established",
        "unread_bytes": 0,
        "unacked_bytes": 0,
        "window_bytes": 60_000,
        "repeats": 0,
        "timer": 0,
        "timer_s": 0.0,
        "keepalive_s": None,
        "acked_bytes": 100_000,
        "received_bytes": 100_000,
        "sent_age_s": 30.0,
        "received_age_s": 30.0,
        "rto_s": 0.2,
    }
    return TcpEnd(
        local=local, local_port=local_port, remote=remote, remote_port=remote_port, **{**quiet, **values}
    )


def look_at(at_s: float, *ends: tuple[str, TcpEnd], cpu_s: float = 1.0, state: str = "S") -> StallLook:
    by_pod: dict[str, tuple[TcpEnd, ...]] = dict.fromkeys(ADDRESSES.values(), ())
    for pod, one in ends:
        by_pod[pod] += (one,)
    process = ProcessLook(container="app", cpu_s=cpu_s, state=state, started_s=0.0)
    return StallLook(
        at_s=at_s,
        addresses=ADDRESSES,
        ends=by_pod,
        processes={pod: {number: process} for number, pod in enumerate(ADDRESSES.values(), 1)},
        limits={pod: {"tcp_syn_retries": 6, "tcp_retries2": 15} for pod in ADDRESSES.values()},
    )


def pair(
    server: dict[str, Any] | None = None, client: dict[str, Any] | None = None
) -> list[tuple[str, TcpEnd]]:
    found = []
    if server is not None:
        found.append(("server", end("10.0.0.1", 50051, "10.0.0.2", 4000, **server)))
    if client is not None:
        found.append(("client-0", end("10.0.0.2", 4000, "10.0.0.1", 50051, **client)))
    return found


def state_of(*ends: tuple[str, TcpEnd]) -> tuple[str, str, str]:
    (one,) = standings(look_at(0.0, *ends), waiting="server", waits_for=["client-0"])
    return one.source, one.state, one.detail


def test_each_state_of_a_connection() -> None:
    assert state_of(*pair({}, {}))[1] == "established and silent"
    lost = {"timer": RETRANSMIT_TIMER, "repeats": 5, "unacked_bytes": 900, "timer_s": 3.0, "rto_s": 6.4}
    assert state_of(*pair({}, lost)) == ("client-0:4000", "retransmitting into nothing", "5 times, 900 bytes")
    assert state_of(*pair({})) == (
        "server:50051",
        "gone at one end only",
        "client-0 has no such connection any more",
    )
    assert state_of(*pair(None, {"state": "syn_sent", "repeats": 2, "timer": RETRANSMIT_TIMER}))[1:] == (
        "no answer to SYN",
        "sent 3 times",
    )
    answered = pair({"state": "syn_recv"}, {"state": "syn_sent", "timer": RETRANSMIT_TIMER})
    assert state_of(*answered)[2] == "sent once, which server has seen: its answer does not come"
    closed = pair(
        {"unacked_bytes": 9000, "timer": PROBE_TIMER, "repeats": 4, "window_bytes": 0},
        {"unread_bytes": 70_000},
    )
    assert state_of(*closed) == (
        "server:50051",
        "zero window",
        "client-0 does not read, 70,000 bytes wait there; asked 4 times",
    )
    cut_off = pair({}, {"unacked_bytes": 1, "timer": PROBE_TIMER, "repeats": 4, "state": "fin_wait1"})
    assert state_of(*cut_off)[1] == "retransmitting into nothing"
    assert state_of(*pair({}, {"unread_bytes": 10}))[1] == "not read"
    assert state_of(*pair({"state": "fin_wait2"}, {"state": "close_wait"}))[1] == "closed by one side"
    assert state_of(*pair({"unacked_bytes": 5}, {}))[1] == "bytes on the way"


def test_when_tcp_gives_up_a_syn() -> None:
    syn = {"state": "syn_sent", "repeats": 3, "timer": RETRANSMIT_TIMER, "timer_s": 0.4, "rto_s": 1.0}
    now = look_at(0.0, *pair(None, syn))
    (one,) = standings(now, waiting="server", waits_for=["client-0"])
    assert one.ends_in_s == pytest.approx(0.4 + 2 + 4 + 8)
    linear = {"tcp_syn_retries": 6, "tcp_syn_linear_timeouts": 4}
    (one,) = standings(replace(now, limits={"client-0": linear}), waiting="server", waits_for=["client-0"])
    # As Documentation/networking/ip-sysctl.rst has it: 1, 1, 1, 1, 1, 2, 4, ..., 131 s in all.
    assert one.ends_in_s == pytest.approx(0.4 + 131 - 4)


def test_an_end_that_nobody_looked_at_is_not_gone() -> None:
    now = look_at(0.0, *pair({}))
    seen = {pod: ends for pod, ends in now.ends.items() if pod != "client-0"}
    (one,) = standings(replace(now, ends=seen), waiting="server", waits_for=["client-0"])
    assert (one.state, one.detail) == ("established and silent", "client-0's end is not seen")


def test_a_sidecars_connection_counts_where_it_does_not_just_wait() -> None:
    silent = end("127.0.0.1", 15051, "127.0.0.1", 5000)
    unread = end("127.0.0.1", 5000, "127.0.0.1", 15051, unread_bytes=400)
    found = standings(
        look_at(0.0, ("client-0", silent), ("client-0", unread)), waiting="server", waits_for=["client-0"]
    )
    assert [(one.source, one.state) for one in found] == [("client-0:5000", "not read")]
    assert standings(look_at(0.0, ("client-1", unread)), waiting="server", waits_for=["client-0"]) == ()


def test_a_stall_is_named_once_and_again_after_progress() -> None:
    watch = StallWatch(10.0)

    def take(at_s: float, *, received: int = 100_000, cpu_s: float = 1.0) -> Any:
        ends = pair({"received_bytes": received}, {})
        now = look_at(at_s, *ends, cpu_s=cpu_s)
        return watch.take(now, waiting="server", waits_for=["client-0"], round_number=2)

    assert take(0.0) is None
    assert take(9.9) is None
    stall = take(10.0)
    assert stall is not None
    assert (stall.since_s, stall.round, stall.waits_for) == (0.0, 2, ("client-0",))
    assert take(30.0) is None
    assert take(32.5, received=100_200) is None  # a frame is no progress
    assert take(35.0, received=200_000) is None
    assert take(44.9, received=200_000) is None
    assert take(45.0, received=200_000).since_s == 35.0
    assert take(50.0, received=200_000, cpu_s=1.02) is None
    assert take(52.5, received=200_000, cpu_s=2.0) is None  # trains
    assert take(62.0, received=200_000, cpu_s=2.0) is None
    assert take(62.5, received=200_000, cpu_s=2.0) is not None


def test_attempts_to_connect_are_no_progress() -> None:
    watch = StallWatch(10.0)
    for number in range(4):
        fresh = end("10.0.0.2", 4000 + number, "10.0.0.1", 50051, acked_bytes=3000, received_bytes=2500)
        found = watch.take(
            look_at(number * 4.0, ("client-0", fresh)), waiting="server", waits_for=["client-0"]
        )
    assert found is not None


def test_what_others_compute_is_no_progress() -> None:
    watch = StallWatch(10.0)
    for at_s in (0.0, 5.0, 10.0):
        now = look_at(at_s, *pair({}, {}))
        busy = replace(now.processes["client-1"][3], cpu_s=at_s)
        now = replace(now, processes={**now.processes, "client-1": {3: busy}})
        found = watch.take(now, waiting="server", waits_for=["client-0"])
    assert found is not None


def test_the_words_hold_everything() -> None:
    watch = StallWatch(10.0)
    lost = {
        "timer": RETRANSMIT_TIMER,
        "repeats": 5,
        "unacked_bytes": 900,
        "timer_s": 3.0,
        "rto_s": 6.4,
        "received_age_s": 11.5,
    }
    for at_s in (100.0, 112.0):
        now = look_at(at_s, *pair({}, lost), state="T")
        found = watch.take(
            now,
            waiting="server",
            waits_for=["client-0"],
            round_number=4,
            timeouts=[Timeout(what="the server's deadline", in_s=250.0)],
        )
    assert found is not None
    assert stall_words(found) == (
        "round 4 stands still: no data and no work for 12 s; server waits for client-0; server is stopped by"
        " a signal; client-0 is stopped by a signal; the last data crossed 11.5 s ago, server -> client-0;"
        " client-0:4000 -> server:50051 retransmitting into nothing (5 times, 900 bytes); ends in 250 s:"
        " the server's deadline"
    )
    # 6.4 s doubled up to 120 s, ten times, and the 3 s that the timer has left.
    by_tcp = next(one for one in found.timeouts if "TCP" in one.what)
    assert by_tcp.in_s == pytest.approx(3.0 + 12.8 + 25.6 + 51.2 + 102.4 + 6 * 120)
    assert "tcp_retries2 15" in by_tcp.what
    assert found.as_dict()["words"] == stall_words(found)


def test_a_run_waits_for_whom_its_server_has_not_heard_of() -> None:
    looks = iter([look_at(at_s, *pair({}, {})) for at_s in (0.0, 3.0, 12.0, 20.0, 24.0, 32.0)])
    stalls = RunStalls(
        "server", ["client-0", "client-1"], lambda: next(looks), since_s=0.0, after_s=10.0, deadline_s=300.0
    )
    stalls.take({"event": "client_ready", "client_id": "client-0"})
    assert stalls.overdue(1.0) is None
    assert stalls.overdue(2.5) is None
    assert stalls.overdue(5.0) is None
    found = stalls.overdue(12.0)
    assert found is not None
    assert (found.round, found.waits_for) == (None, ("client-1",))
    stalls.take({"event": "round_start", "round": 1, "time_monotonic_ns": 15_000_000_000})
    stalls.take({"event": "update_received", "client_id": "client-1"})
    assert stalls.overdue(20.0) is None
    assert stalls.overdue(24.0) is None
    found = stalls.overdue(32.0)
    assert found is not None
    assert (found.round, found.waits_for) == (1, ("client-0",))
    assert found.timeouts[0].in_s == pytest.approx(15.0 + 300.0 - 32.0)
    stalls.take({"event": "round_end", "round": 1})
    assert stalls.overdue(500.0) is None  # between rounds nobody is waited for
    assert len(stalls.found) == 2


def standing(source: str, target: str, sender: str, age_s: float | None) -> Standing:
    return Standing(
        source=f"{source}:1",
        target=f"{target}:2",
        state="established and silent",
        detail="",
        last_data_age_s=age_s,
        last_data_from=sender,
        ends_in_s=None,
        ends_by="",
    )


@pytest.mark.parametrize(
    ("connections", "expected"),
    [
        ([standing("server", "a", "server", 9.0), standing("server", "b", "b", 1.0)], ("server", ("a",))),
        ([standing("a", "server", "a", 9.0), standing("b", "server", "server", 12.0)], ("server", ("b",))),
        ([standing("a", "server", "a", 9.0), standing("b", "server", "b", 12.0)], ("a", ("server",))),
        ([standing("hub", "server", "server", 3.0)], ("server", ("hub",))),
        ([standing("a", "server", "", None), standing("a", "a", "a", 1.0)], ("", ())),
        ([], ("", ())),
    ],
)
def test_who_was_sent_something_last_is_waited_for(
    connections: list[Standing], expected: tuple[str, tuple[str, ...]]
) -> None:
    assert who_waits(connections, ("server", "hub"), ("a", "b")) == expected


def test_participants_of_one_namespace_are_told_apart_on_its_loopback() -> None:
    server = end("127.0.0.1", 50051, "127.0.0.1", 4000)
    client = end("127.0.0.1", 4000, "127.0.0.1", 50051, received_age_s=12.0)
    apart = look_at(0.0, ("server", server), ("client-0", client))
    shared = replace(apart, places={"server": 1, "client-0": 1, "client-1": 1})
    (one,) = standings(shared, waiting="", waits_for=("server", "client-0"))
    assert {one.source, one.target} == {"server:50051", "client-0:4000"}
    # In namespaces of their own these are two connections that never left their pods.
    within = standings(apart, waiting="", waits_for=("server", "client-0"))
    assert [(one.source, one.target) for one in within] == [
        ("client-0:4000", "client-0:50051"),
        ("server:50051", "server:4000"),
    ]
