"""Causes by their evidence: what separates one from another, and from a network that is merely slow."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pandas as pd
import pytest

from analysis.causes import application, emulation, resources
from analysis.causes.attempts import Attempt
from analysis.causes.case import Case, Exit, StateChange, case_of
from analysis.causes.closes import recognise_closes, recognise_resets
from analysis.causes.cpu_contention import recognise_contention
from analysis.causes.deadlines import recognise_deadlines
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.causes.ranking import ranked
from analysis.causes.windows import recognise_windows
from analysis.evidence.values import (
    ACK,
    FIN,
    RST,
    SYN,
    Burst,
    Endpoint,
    Key,
    LoKey,
    Packet,
    Retransmission,
    wire_between,
)
from tests.unit.recorded_run import recorded
from ztprobe.agent.machine_load import COLUMNS
from ztprobe.events.kinds import Direction, Hook

NS = 1_000_000_000
SERVER, CLIENT = "fl-server", "fl-client-0"
SIDECAR, APPLICATION = "proxy", "server"


@functools.cache
def whole() -> Case:
    """A recorded run with sidecars, as a case."""
    return case_of(recorded())


@functools.cache
def begin_ns() -> int:
    return max(e["time_monotonic_ns"] for e in whole().run.rounds)


def at(seconds: float) -> int:
    """Long after everything that was recorded."""
    return begin_ns() + round((100 + seconds) * NS)


def bare(**changes: Any) -> Case:
    """The recorded run's pods and roles, and nothing that was seen."""
    events = type(whole().events)()
    case = dataclasses.replace(
        whole(),
        events=events,
        attempts=(),
        questions=(),
        dropped=(),
        exits=(),
        state_changes={},
        logs={},
        until_ns=at(60),
        sidecars=dict.fromkeys((SERVER, CLIENT), SIDECAR),
    )
    return dataclasses.replace(case, **changes)


def trouble(**said: Any) -> Trouble:
    given = {"kind": "unfinished", "rounds": (9,), "from_ns": at(0), "to_ns": at(20), "pods": (CLIENT,)}
    return Trouble(**{**given, "words": "round 9 did not end", **said})


def with_counters(case: Case, *samples: dict[str, Any]) -> Case:
    return dataclasses.replace(
        case, run=dataclasses.replace(case.run, meta={**case.run.meta, "pod_counters": list(samples)})
    )


def ids(found: Any) -> list[str]:
    return [one.of.id for one in found]


# connections that a proxy ends


def packet(seconds: float, direction: Direction, flags: int, payload_bytes: int = 0) -> Packet:
    kind = "payload" if payload_bytes else "setup"
    return Packet(CLIENT, at(seconds), kind, direction, flags, 0, payload_bytes, 0, 0, 0, 0, 0, 0, 0, b"")


def attempt(
    pod: str, target: str, key: Key, *, ended_s: float | None, by_opener: bool, flag: int = FIN
) -> Attempt:
    """Opened at 1 s, with a payload at 2 s."""
    packets = [
        packet(1, Direction.TX, SYN),
        packet(1.01, Direction.RX, SYN | ACK),
        packet(2, Direction.TX, ACK, 900),
    ]
    if ended_s is not None:
        packets.append(packet(ended_s, Direction.TX if by_opener else Direction.RX, flag | ACK))
    return Attempt(
        pod=pod,
        target=target,
        port=50051,
        key=key,
        syns_ns=(at(1),),
        answered_ns=at(1.01),
        refused_ns=None,
        arrived_ns=at(1),
        refused_by_target=True,
        packets=tuple(packets),
    )


def closing(seconds: float, process: str) -> list[StateChange]:
    return [StateChange(at(seconds), process.partition("/")[0], process, 1, "established", "fin_wait1")]


def wire() -> Key:
    addresses = whole().addresses
    return wire_between(Endpoint(addresses[CLIENT], 40000), Endpoint(addresses[SERVER], 50051))


LOCAL = LoKey(SERVER, 15051, 41000)


def two_legs(wire_s: float, wire_by: str, local_s: float | None, local_by: str) -> Case:
    """A client's connection at the server's sidecar, and the sidecar's to the application."""
    changes = {wire(): closing(wire_s, wire_by)}
    if local_s is not None:
        changes[LOCAL] = closing(local_s, local_by)
    attempts = (
        attempt(CLIENT, SERVER, wire(), ended_s=wire_s, by_opener=False),
        attempt(SERVER, SERVER, LOCAL, ended_s=local_s, by_opener=local_by.endswith(SIDECAR)),
    )
    return bare(attempts=attempts, state_changes=changes)


PROXY = f"{SERVER}/{SIDECAR}"


def test_a_sidecar_that_ends_both_legs_of_an_idle_way_has_dropped_it() -> None:
    (found, again) = recognise_closes(two_legs(5, PROXY, 5.001, PROXY), [trouble()])
    assert {found.of.id, again.of.id} == {"application.idle_connection_dropped"}
    assert "after 4.0 s without data" in found.summary
    assert found.pods == (SERVER,)


@pytest.mark.parametrize(
    "case",
    [
        # The application has ended it: a GOAWAY, a death, the end of a run.
        pytest.param(lambda: two_legs(5, PROXY, 4.99, f"{SERVER}/{APPLICATION}"), id="passed-on"),
        # Much later: a sidecar that is starved of CPU passes on what it saw seconds before.
        pytest.param(lambda: two_legs(9, PROXY, 4, f"{SERVER}/{APPLICATION}"), id="passed-on-late"),
        # The other leg broke, and nobody said so: a host that went down.
        pytest.param(lambda: two_legs(5, PROXY, None, ""), id="broken"),
        # A client that reconnects every round closes in good order, however long it waited for the others.
        pytest.param(lambda: two_legs(5, f"{CLIENT}/{SIDECAR}", 5.08, PROXY), id="reconnecting"),
    ],
)
def test_a_sidecar_that_only_passes_an_end_on_has_dropped_nothing(case: Any) -> None:
    assert ids(recognise_closes(case(), [trouble()])) == []


def test_threads_that_serve_a_leg_tell_which_the_other_one_is() -> None:
    case = two_legs(5, PROXY, 5.001, PROXY)
    # Another client's leg, which the application has just ended, is not this way's.
    other = LoKey(SERVER, 15051, 41001)
    case = dataclasses.replace(
        case,
        attempts=(*case.attempts, attempt(SERVER, SERVER, other, ended_s=4.9, by_opener=False)),
        state_changes={**case.state_changes, other: closing(4.9, f"{SERVER}/{APPLICATION}")},
    )
    assert len(ids(recognise_closes(case, [trouble()]))) == 1  # by the other leg alone
    case.events.partners[SERVER, wire()] = LOCAL  # type: ignore[index]
    assert ids(recognise_closes(case, [trouble()])) == ["application.idle_connection_dropped"] * 2


# resets


def reset_at(seconds: float, **changes: Any) -> Case:
    one = attempt(CLIENT, SERVER, wire(), ended_s=seconds, by_opener=False, flag=RST)
    return bare(attempts=(dataclasses.replace(one, **changes),))


def test_a_reset_in_the_middle_of_a_trouble_is_what_is_left_to_say() -> None:
    (found,) = recognise_resets(reset_at(5), [trouble()])
    assert (found.of.id, found.pods) == ("application.connection_reset", (SERVER,))
    assert found.strength <= 0.5
    (between,) = recognise_resets(reset_at(5, refused_by_target=False), [trouble()])
    assert "somebody on the way" in between.summary
    assert f"{SERVER} has not sent it" in between.moments[0].shows


@pytest.mark.parametrize(
    ("seconds", "said"), [(19.9, {}), (5, {"kind": "slow"}), (30, {})], ids=["its end", "slow", "later"]
)
def test_a_reset_that_hurts_nobody_is_no_cause(seconds: float, said: dict[str, Any]) -> None:
    assert ids(recognise_resets(reset_at(seconds), [trouble(**said)])) == []


# receive windows


def burst(**said: Any) -> Burst:
    given = dict.fromkeys(Burst._fields, 0) | {"pod": CLIENT, "hook": Hook.ETH, "direction": Direction.TX}
    return Burst(**{**given, "first_ns": at(1), "last_ns": at(19), "bytes": 2_000_000, **said})


def sending(one: Burst) -> Case:
    case = bare()
    case.events.bursts[CLIENT, Hook.ETH, wire()] = {Direction.TX: [one]}
    return case


def test_a_sender_that_waits_for_a_window_tells_of_a_receive_buffer() -> None:
    (found,) = recognise_windows(sending(burst(rwnd_ns=15 * NS)), [trouble()])
    assert (found.of.id, found.pods) == ("resources.receive_buffer_full", (SERVER,))
    assert "15.0 s of 20.0 s" in found.summary
    # Only what lies in the trouble counts: here 4 s of 18.
    late = trouble(from_ns=at(15), to_ns=at(40))
    assert ids(recognise_windows(sending(burst(rwnd_ns=15 * NS)), [late])) == []
    assert ids(recognise_windows(sending(burst(cwnd_ns=15 * NS, rwnd_ns=NS)), [trouble()])) == []


def test_full_buffers_behind_a_sidecar_are_back_pressure() -> None:
    """A sidecar before a slow link reads slowly: its loopback's counters grow, and nothing is wrong."""
    counted = {"receive_pruned": 40, "receive_dropped": 12, "closed_windows": 900}
    samples = [
        {"at_ns": at(1), "pods": {CLIENT: dict.fromkeys(counted, 0)}, "containers": {}},
        {"at_ns": at(10), "pods": {CLIENT: counted}, "containers": {}},
    ]
    behind = with_counters(bare(), *samples)
    assert ids(resources.recognise(behind, [trouble()])) == []
    alone = dataclasses.replace(behind, sidecars={})
    assert ids(resources.recognise(alone, [trouble()])) == ["resources.receive_buffer_full"] * 2


# deadlines


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [([13_700], ["application.slow_client"]), ([6_000, 7_700], ["application.slow_client"]), ([3_000], [])],
    ids=["whole", "in pieces", "a handshake"],
)
def test_a_client_that_has_the_model_and_sends_nothing_computes(
    pieces: list[int], expected: list[str]
) -> None:
    case = bare()
    case.events.bursts[CLIENT, Hook.ETH, wire()] = {
        Direction.RX: [
            burst(direction=Direction.RX, first_ns=at(1 + n), last_ns=at(1.5 + n), bytes=size)
            for n, size in enumerate(pieces)
        ]
    }
    ended = {"event": "wait_end", "round": 9, "time_monotonic_ns": at(8), "time_unix_ns": 0}
    case = dataclasses.replace(case, run=dataclasses.replace(case.run, rounds=[*case.run.rounds, ended]))
    assert ids(recognise_deadlines(case, [trouble()])) == expected


# links that lose packets


def losing(measured_pct: float, times: int, **emulation_said: Any) -> Case:
    case = bare()
    again = [Retransmission(at(n), at(n - 1), 0, n, 1448, "established", 0) for n in range(2, 2 + times)]
    case.events.retransmissions[CLIENT, wire()] = again
    emulation_ = {**case.run.meta["emulation"], "measured": {"loss_pct": measured_pct}, **emulation_said}
    meta = {**case.run.meta, "emulation": emulation_}
    return dataclasses.replace(case, run=dataclasses.replace(case.run, meta=meta))


def test_a_link_that_was_measured_to_lose_much_is_why_clients_do_not_get_through() -> None:
    never = trouble(kind="set-up", rounds=(0,), words="no round began within 9 s")
    found = [one for one in emulation.recognise(losing(24.8, 6), [never]) if "loss" in one.of.id]
    assert ids(found) == ["emulation.loss_profile"]
    assert "24.8 %" in found[0].summary
    assert ids(emulation.recognise(losing(24.8, 2), [never])) == []
    # What a profile for poor mobile networks loses is none by itself.
    assert ids(emulation.recognise(losing(1.2, 6), [never])) == []


def test_more_loss_than_was_asked_for_is_no_profiles() -> None:
    failed = trouble(kind="failed", rounds=(), words="the run failed before the clients were started")
    said = {
        "profile": "net0",
        "requested": {"loss_pct": 0.0},
        "problems": ["91 of 500 probes lost (18.20 %) instead of 0 %"],
    }
    case = losing(18.2, 6, **said)
    case.run.meta["failed"] = {"reason": "net0 is not what the pods got", "at_ns": at(9)}
    case = dataclasses.replace(case, failed="net0 is not what the pods got")
    assert ids(emulation.recognise(case, [failed])) == ["emulation.leftover_profile"]


# a CPU that others use


def machine(others_ns_per_s: int) -> pd.DataFrame:
    rows = [
        dict.fromkeys(COLUMNS, 0) | {"from_ns": at(n), "to_ns": at(n + 1), "ztprobe_ns": others_ns_per_s}
        for n in range(-5, 40)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def contended(
    waits: list[tuple[int, int]], table: pd.DataFrame | None, *samples: dict[str, Any]
) -> list[Cause]:
    case = with_counters(bare(), *samples)
    case.events.cpu_waits[f"{CLIENT}/client"] = [waits, [(at(1), at(1.5))]]
    case = dataclasses.replace(case, machine=table)
    slow = trouble(kind="slow", from_ns=at(0), to_ns=at(10), words="round 9 took 10.0 s, and its peers 2.0 s")
    return list(recognise_contention(case, [slow]))


WAITED = [(at(2), at(5)), (at(5.5), at(8.5))]


def test_a_client_that_waits_for_a_cpu_while_others_run_is_contended() -> None:
    (found,) = contended(WAITED, machine(NS))
    assert (found.of.id, found.pods) == ("resources.cpu_contention", (CLIENT,))
    assert "6.0 s of 10.0 s" in found.summary
    assert found.strength > 0.85
    assert [m.ts_ns for m in found.moments] == [at(2), at(8.5), at(10)]


@pytest.mark.parametrize(("used_s", "certain"), [(0.3, True), (4.0, False)])
def test_who_works_more_than_usual_is_slow_rather_than_starved(used_s: float, certain: bool) -> None:
    process = f"{CLIENT}/client"
    samples = [
        {"at_ns": at(n), "pods": {}, "containers": {process: {"cpu_ns": round(cpu_s * NS)}}}
        for n, cpu_s in ((-5, 1.0), (0, 1.1), (10, 1.1 + used_s))
    ]
    (found,) = contended(WAITED, machine(NS), *samples)
    assert (found.strength > 0.85) == certain
    moment = Moment(ts_ns=at(8), pod=SERVER, event="deadline", shows="it still computed")
    remedial = Remedial(words="less to train")
    slow = cause_of("application.slow_client", summary="", strength=0.8, moments=(moment,), remedial=remedial)
    order = [one.of.id for one, _ in ranked([found, slow], [trouble()])]
    assert (order[0] == "resources.cpu_contention") == certain


def test_waiting_alone_is_no_contention() -> None:
    assert contended(WAITED, machine(NS // 20)) == []  # pods keep each other waiting
    assert contended(WAITED, None) == []  # who ran is not known
    assert contended([(at(2), at(3.5))], machine(NS)) == []  # too little of the round


# pods that were told to end


def ended(*exits: tuple[str, int], containers: tuple[str, ...] = ()) -> Case:
    sample = {"at_ns": at(0), "pods": {}, "containers": {name: {} for name in containers}}
    exits_ = tuple(Exit(process=process, status=status, at_ns=at(5)) for process, status in exits)
    return with_counters(bare(exits=exits_), sample)


BOTH = (f"{CLIENT}/client", f"{CLIENT}/{SIDECAR}")


def test_a_pod_whose_containers_were_all_told_to_end_was_evicted() -> None:
    hold = f"{CLIENT}/ztprobe-hold"  # that a run on a cluster has beside its applications
    case = ended((BOTH[0], 143), (BOTH[1], -15), containers=(*BOTH, hold))
    (found,) = application.recognise(case, [trouble()])
    assert (found.of.id, found.pods) == ("application.pod_restarted", (CLIENT,))
    assert found.strength > 0.9
    assert found.details == {"restarted": False}
    again = StateChange(at(8), CLIENT, BOTH[0], 1, "syn_sent", "established")
    case = dataclasses.replace(case, state_changes={wire(): [again]})
    (found,) = application.recognise(case, [trouble()])
    assert found.details == {"restarted": True}


@pytest.mark.parametrize(
    ("exits", "expected"),
    [
        ([(BOTH[0], 143)], ["application.client_died"]),  # its sidecar runs on: somebody ended the process
        ([(BOTH[0], -9), (BOTH[1], -9)], ["application.client_died", "tls.sidecar_down"]),
        ([(BOTH[0], 1), (BOTH[1], -15)], ["application.client_died", "tls.sidecar_down"]),
    ],
)
def test_a_process_that_ended_otherwise_is_no_evicted_pod(
    exits: list[tuple[str, int]], expected: list[str]
) -> None:
    assert sorted(ids(application.recognise(ended(*exits, containers=BOTH), [trouble()]))) == expected
