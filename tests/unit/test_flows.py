"""A recorded deployment with a hub against what it wrote down itself, and hops made by hand."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from jsonschema import Draft202012Validator

from analysis.evidence.reader import read_events
from analysis.evidence.values import Endpoint, KernelEvents, Wire
from analysis.flows.processes import Process, Processes
from analysis.flows.proxies import speak_for_applications
from analysis.flows.roles import handing_to_nobodys, parts_of
from analysis.flows.setups import holding_up, setups_of
from analysis.flows.turns import Channel, channels_of, place_arrivals, round_trips_of
from analysis.intervals import Segment, paint
from analysis.ledger.handshakes import TlsHandshake, read_setup
from analysis.load import Analysed, load_analysed
from analysis.report.communication import communication_csv
from analysis.report.communication_words import communication_lines
from analysis.report.report import build_report
from analysis.run_checks import checked
from tests.generic_truth import Truth
from tests.schemas import schema
from tests.turns import HUB, KEY, MS, NODE, said
from ztprobe.rundir.store import load_run

RECORDED = Path(__file__).parents[1] / "data" / "attached-hub"
HUB_POLLED_S = {"server": 0.6, "client-1": 0.8, "client-2": 0.8}


@functools.cache
def analysed() -> Analysed:
    return load_analysed(RECORDED)


@functools.cache
def report() -> dict[str, Any]:
    return build_report(analysed().run, analysed().ledger, None)


@pytest.mark.parametrize("index", range(3))
def test_a_recorded_round_is_what_was_injected(index: int) -> None:
    """Recorded on a machine that others kept busy all the while."""
    one = analysed().ledger.rounds[index]
    assert sum(one.components_ns.values()) + one.residual_ns == one.duration_ns
    assert one.residual_ns < 0.001 * one.duration_ns
    assert one.critical_client is not None
    expected = Truth(RECORDED / "truth").of_round(one.round, one.critical_client)
    found = {name: one.components_ns[name] / 1e9 for name in expected}
    # The hub's handling of each part, which nobody injected, is in it besides, its time between an answer's
    # head and the rest included.
    assert 0 <= found.pop("store_and_forward") - expected.pop("store_and_forward") < 0.3
    assert found == pytest.approx(expected, rel=0.05, abs=0.06)
    for name in ("poll_wait", "task_start"):
        assert found[name] == pytest.approx(expected[name], abs=0.03)


def test_the_critical_clients_pieces_are_what_components_sum_up() -> None:
    for one in analysed().ledger.rounds:
        critical = next(each for each in one.clients if each.client == one.critical_client)
        assert critical.segments[0].start_ns == one.start_ns
        assert critical.segments[-1].end_ns == one.start_ns + one.duration_ns
        waits = sum(
            piece.end_ns - piece.start_ns for piece in critical.segments if piece.component == "poll_wait"
        )
        assert waits == one.components_ns["poll_wait"]


def test_polls_are_found_with_their_pause() -> None:
    pauses = {one["who"]: one["pause_s"] for one in report()["communication"]["pollers"]}
    assert pauses == pytest.approx(HUB_POLLED_S, rel=0.05)


def test_the_report_says_what_communication_costs() -> None:
    assert list(Draft202012Validator(schema("report")).iter_errors(report())) == []
    found = report()["communication"]
    assert found["path"] == ["server", "hub", "client", "task's process"]
    assert sum(found["shares"].values()) == pytest.approx(1, abs=1e-6)
    lines = dict(communication_lines(found))
    assert lines["path"] == "server → hub → client → task's process and back"
    assert lines["a round is"].startswith("training ")
    rows = communication_csv(found).splitlines()
    assert rows[0].startswith("round,client,critical,communication_s,transfer_s,polling_s")
    assert len(rows) == 1 + 3 * 2
    assert report()["sub_rows"]["task_start"]["imports"]["mean_s"] > 0


def between(speaker: Process, listener: Process, count: int = 1_000_000) -> Channel:
    turn = dataclasses.replace(said(True, 0, 1, count), speaker=speaker, listener=listener)
    answer = dataclasses.replace(said(False, 2, 3, count), speaker=listener, listener=speaker)
    return Channel(KEY, 0, [turn, answer])


def test_a_proxy_speaks_for_its_application() -> None:
    server, client = Process(1, participant="server"), Process(2, participant="client-1")
    proxies = Process(11, participant="server"), Process(12, participant="client-1")
    channels = [between(server, proxies[0]), between(*proxies), between(proxies[1], client)]
    roles = [{"name": one.participant, "role": one.participant[:6]} for one in (server, client)]
    named = Processes({"participants": roles}, pd.DataFrame({"how": []}))
    speak_for_applications(channels, frozenset((11, 12)))
    parts = parts_of(named, channels)
    assert (parts.server, parts.hub, parts.nodes) == (server, None, {"client-1": frozenset((client,))})
    assert not parts.tasks["client-1"]


def test_who_passes_messages_on_is_a_hub_and_a_process_beside_the_node_a_task() -> None:
    server, hub = Process(1, participant="hub"), Process(2, participant="hub")
    node, task = Process(3, participant="client-1"), Process(4, 5, 3, "client-1")
    roles = [{"name": "hub", "role": "server"}, {"name": "client-1", "role": "client"}]
    named = Processes({"participants": roles}, pd.DataFrame({"how": []}))
    parts = parts_of(named, [between(server, hub), between(node, hub), between(task, node)])
    assert (parts.server, parts.hub) == (server, hub)
    assert parts.nodes == {"client-1": frozenset((node,))}
    assert parts.tasks == {"client-1": frozenset((task,))}
    assert not handing_to_nobodys(parts, [between(node, task)])
    assert handing_to_nobodys(parts, [between(node, Process(5))]) == ["client-1"]
    with pytest.raises(ValueError, match="no message of 8192 bytes"):
        parts_of(named, [between(node, hub, 100)])


def test_window_updates_cut_no_message_in_two() -> None:
    """Told by tables: 13 bytes back amid a message of 300 kB, on a connection older than the trace."""
    ends = {"pod": "n", "local": "127.0.0.1", "local_port": 80, "remote": "127.0.0.1", "remote_port": 4000}
    connections = pd.DataFrame([ends | {"connection": 7, "opened_ns": 0, "first_seq": 0, "ts_ns": 0}])
    spoken = [("rx", 0, 100), ("tx", 0, 150_000), ("rx", 100, 113), ("tx", 150_000, 300_000)]
    turns = pd.DataFrame(
        [
            {
                "connection": 7,
                "pod": "n",
                "hook": "lo",
                "direction": direction,
                "tgid": 0,
                "first_ns": number * MS,
                "last_ns": number * MS + 1,
                "first_seq": first,
                "end_seq": end,
                "first_ack_us": 0,
                "last_ack_us": 0,
            }
            for number, (direction, first, end) in enumerate(spoken)
        ]
    )
    packets = pd.DataFrame({"tcp_flags": [], "connection": [], "direction": []}, dtype="int64")
    tables = {"connections": connections, "turns": turns, "packets": packets}
    named = Processes({"participants": []}, pd.DataFrame({"how": []}))
    (channel,) = channels_of(tables, named)
    assert [(turn.asks, turn.bytes) for turn in channel.turns] == [(True, 100), (False, 300_000)]
    assert channel.turns[1].whole_ns == 3 * MS + 1


def test_what_arrived_where_nobody_watched_is_told_by_acknowledgements() -> None:
    """Sent from 0 to 200 ms, first acknowledged after 40 ms, all of it 60 ms after the last had left."""
    away = Process(0, participant="far")
    model = dataclasses.replace(
        said(False, 0, 200, 1_000_000),
        listener=away,
        first_ack_ns=40 * MS,
        last_ack_ns=60 * MS,
        is_seen_arriving=False,
    )
    update = dataclasses.replace(said(True, 700, 800, 1_000_000), speaker=away)
    channel = Channel(KEY, 0, [model, update])
    assert round_trips_of([channel]) == {"far": 40 * MS}
    place_arrivals([channel], round_trips_of([channel]))
    assert (model.arrived_ns, model.whole_ns) == (20 * MS, 240 * MS)
    assert (update.arrived_ns, update.whole_ns) == (700 * MS, 800 * MS)


def test_what_a_participant_starts_is_its_own() -> None:
    starts = pd.DataFrame(
        {
            "how": ["fork", "exec", "fork", "fork"],
            "tgid": [20, 20, 21, 20],
            "parent": [10, 10, 20, 99],
            "ts_ns": [100, 110, 120, 500],
        }
    )
    processes = [{"pid": 10, "started": 0, "command": ""}]
    named = Processes({"participants": [{"name": "a", "role": "client", "processes": processes}]}, starts)
    assert named.at(10, 50).participant == named.at(21, 130).participant == "a"
    assert named.at(20, 200) == Process(20, 100, 10, "a")
    assert named.at(20, 600).participant == ""  # the number came again, for somebody else's
    assert named.at(77, 0).participant == ""


def test_truth_is_read_whole() -> None:
    logged = [json.loads(line) for line in (RECORDED / "truth" / "hub.jsonl").read_text().splitlines()]
    assert {"stored", "taken", "given", "asked_in_vain"} <= {line["event"] for line in logged}


@functools.cache
def secured() -> KernelEvents:
    """Of clients that had to shake hands, with 80 ms between them and their server."""
    run, _ = checked(load_run(RECORDED.parent / "net2-sec3"))
    return read_events(run.events)


def shaking_hands() -> tuple[Wire, TlsHandshake]:
    """A connection over the wire, and its TLS handshake at the end that opened it."""
    for (_, key), packets in secured().packets.items():
        setup = read_setup(packets)
        if isinstance(key, Wire) and setup is not None and setup.tls is not None and setup.tls.finished_ns:
            return key, setup.tls
    raise LookupError("no handshake was recorded")


def on(key: Wire, *turns: tuple[bool, int, int]) -> Channel:
    """A connection that was opened while the trace went on, and what was said on it."""
    found = []
    for asks, first_ns, last_ns in turns:
        times = {"first_ns": first_ns, "arrived_ns": first_ns, "last_ns": last_ns, "whole_ns": last_ns}
        found.append(dataclasses.replace(said(asks, 0, 0), key=key, **times))
    return Channel(key, 1, found)


def overlays_of(channels: list[Channel]) -> list[Segment]:
    openings = setups_of(secured(), channels, frozenset((NODE, HUB)))
    return [one for opening in openings for one in opening.overlays]


def test_a_tls_handshake_is_no_message_on_its_way() -> None:
    key, tls = shaking_hands()
    begun_ns, over_ns = tls.client_hello_ns, tls.finished_ns
    assert over_ns is not None and over_ns - begun_ns > 100 * MS
    channel = on(key, (True, begun_ns, begun_ns), (False, over_ns - MS, over_ns - MS))
    base = [Segment(begun_ns, over_ns, "propagation")]
    overlays = overlays_of([channel])
    assert paint(begun_ns, over_ns, base, overlays) == [Segment(begun_ns, over_ns, "tls_handshake")]
    # Another connection's message goes on beside it: that is what the time went into.
    other = Wire(Endpoint("a", 3), Endpoint("b", 4))
    beside = on(other, (True, begun_ns, begun_ns + 50 * MS))
    overlays = overlays_of([channel, beside])
    assert paint(begun_ns, over_ns, base, overlays) == [
        Segment(begun_ns, begun_ns + 50 * MS, "propagation"),
        Segment(begun_ns + 50 * MS, over_ns, "tls_handshake"),
    ]
    # What an application says to its own proxy is nobody's handshake.
    alone = dataclasses.replace(channel.turns[0], listener=NODE)
    assert not setups_of(secured(), [Channel(key, 1, [alone])], frozenset((NODE, HUB)))


def test_a_connection_for_something_else_holds_up_no_compute() -> None:
    """Heartbeats make connections of their own while a task computes; an update's is made for the update."""
    key, tls = shaking_hands()
    begun_ns, over_ns = tls.client_hello_ns, tls.finished_ns
    assert over_ns is not None
    said_ns = over_ns + 5 * MS
    channel = on(key, (True, begun_ns, begun_ns), (True, said_ns, said_ns + MS))
    (opening,) = setups_of(secured(), [channel], frozenset((NODE, HUB)))
    assert opening.said_ns == said_ns
    later_ns = said_ns + 1000 * MS
    goes_on, hands_over = (begun_ns - 500 * MS, later_ns), (begun_ns - 500 * MS, said_ns)
    assert holding_up([opening], compute=goes_on, until_ns=later_ns) == []
    assert holding_up([opening], compute=hands_over, until_ns=later_ns) == list(opening.overlays)
    assert holding_up([opening], compute=(said_ns, later_ns), until_ns=later_ns) == list(opening.overlays)
    assert holding_up([opening], compute=None, until_ns=later_ns) == list(opening.overlays)


def test_a_handshake_behind_the_update_holds_nothing_up() -> None:
    key, tls = shaking_hands()
    assert tls.finished_ns is not None
    (opening,) = setups_of(
        secured(), [on(key, (True, tls.client_hello_ns, tls.finished_ns + MS))], frozenset((NODE, HUB))
    )
    handed_ns = tls.client_hello_ns + 10 * MS
    held = holding_up([opening], compute=None, until_ns=handed_ns)
    assert held and max(one.end_ns for one in held) == handed_ns
    assert [one.component for one in held][-1] == "tls_handshake"
    assert holding_up([opening], compute=None, until_ns=min(one.start_ns for one in opening.overlays)) == []


def seen_at_two_ends(told: list[tuple[int, str, str, int, int, int, int]]) -> Channel:
    """A connection by its rows of turns: end, hook, direction, from and to in milliseconds, bytes."""
    ends = {"local": "10.0.0.1", "local_port": 40000, "remote": "10.0.0.2", "remote_port": 80}
    far = {"local": "10.0.0.2", "local_port": 80, "remote": "10.0.0.1", "remote_port": 40000}
    connections = pd.DataFrame(
        [
            {"connection": number, "netns": number, "pod": pod, "opened_ns": 0, "ts_ns": 0, **of}
            for number, pod, of in ((1, "n", ends), (2, "s", far))
        ]
    )
    turns = [
        {
            "connection": number,
            "pod": "s",
            "hook": hook,
            "direction": way,
            "tgid": 0,
            "first_ns": first * MS,
            "last_ns": last * MS,
            "first_seq": a,
            "end_seq": b,
            "first_ack_us": 0,
            "last_ack_us": 0,
        }
        for number, hook, way, first, last, a, b in told
    ]
    packets = pd.DataFrame({"tcp_flags": [], "connection": [], "direction": []}).astype(
        {"tcp_flags": "int64"}
    )
    tables = {"connections": connections, "turns": pd.DataFrame(turns), "packets": packets}
    (channel,) = channels_of(tables, Processes({"participants": []}, pd.DataFrame({"how": []})))
    return channel


def test_a_segment_that_comes_twice_is_no_part_of_what_is_said_next() -> None:
    """A request, its answer, a second request, with which the first one's segment arrives once more."""
    channel = seen_at_two_ends(
        [
            (1, "eth", "tx", 0, 1, 0, 900),
            (2, "eth", "rx", 80, 81, 0, 900),
            (2, "sock", "rx", 82, 82, 0, 900),
            (1, "eth", "tx", 180, 181, 900, 1800),
            (2, "eth", "rx", 255, 280, 0, 1800),
            (2, "sock", "rx", 281, 281, 900, 1800),
            # A second time nothing but what is known.
            (2, "eth", "rx", 400, 400, 900, 1800),
        ]
    )
    assert [turn.whole_ns // MS for turn in channel.turns] == [81, 280]
    assert [turn.arrived_ns // MS for turn in channel.turns] == [80, 255]


def test_what_was_said_before_its_sender_was_watched_is_told_as_it_arrived() -> None:
    """A client that comes meanwhile: its end is watched in the midst of its second message."""
    channel = seen_at_two_ends(
        [
            (2, "eth", "rx", 10, 12, 0, 900),
            (2, "eth", "tx", 20, 25, 0, 5000),
            (2, "eth", "rx", 80, 90, 900, 9900),
            (1, "eth", "tx", 85, 89, 4900, 9900),
            (2, "eth", "tx", 100, 105, 5000, 10_000),
            (1, "eth", "rx", 101, 106, 5000, 10_000),
            (1, "eth", "tx", 180, 181, 9900, 18_900),
            (2, "eth", "rx", 181, 182, 9900, 18_900),
        ]
    )
    assert [(turn.asks, turn.bytes) for turn in channel.turns] == [
        (True, 900),
        (False, 5000),
        (True, 9000),
        (False, 5000),
        (True, 9000),
    ]
    assert [turn.whole_ns // MS for turn in channel.turns] == [12, 25, 90, 106, 182]


def test_who_listens_did_not_open_the_connection() -> None:
    """gRPC's usual port is higher than many that pass: its server asks nobody."""
    ends = {"pod": "n", "local": "10.0.0.1", "local_port": 50051, "remote": "10.0.0.2", "remote_port": 40000}
    connections = pd.DataFrame([{"connection": 1, "netns": 1, "opened_ns": 0, "ts_ns": 0, **ends}])
    common = {"connection": 1, "pod": "n", "hook": "eth", "tgid": 0, "first_ack_us": 0, "last_ack_us": 0}
    told = [("rx", 1, 0, 900), ("tx", 2, 0, 150)]
    turns = [
        {**common, "direction": way, "first_ns": at, "last_ns": at, "first_seq": a, "end_seq": b}
        for way, at, a, b in told
    ]
    owners = pd.DataFrame(
        [{**ends, "remote": "0.0.0.0", "remote_port": port, "pid": 7} for port in (0, 40000)]
    )
    packets = pd.DataFrame({"tcp_flags": [], "connection": [], "direction": []}).astype(
        {"tcp_flags": "int64"}
    )
    tables = {"connections": connections, "turns": pd.DataFrame(turns), "packets": packets}
    processes = Processes({"participants": []}, pd.DataFrame({"how": []}))
    for owned, asks in ((None, [False, True]), (owners, [True, False])):
        more = {} if owned is None else {"owners": owned}
        (channel,) = channels_of({**tables, **more}, processes)
        assert [turn.asks for turn in channel.turns] == asks
