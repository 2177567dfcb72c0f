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
from analysis.flows.exchanges import Exchange
from analysis.flows.hops import Talk, hop_segments
from analysis.flows.processes import Process, Processes
from analysis.flows.proxies import speak_for_applications
from analysis.flows.roles import handing_to_nobodys, parts_of
from analysis.flows.setups import setups_of
from analysis.flows.turns import Channel, Turn, channels_of, place_arrivals, round_trips_of
from analysis.intervals import Segment, paint
from analysis.ledger.handshakes import TlsHandshake, read_setup
from analysis.load import Analysed, load_analysed
from analysis.report.communication import communication_csv
from analysis.report.communication_words import communication_lines
from analysis.report.report import build_report
from analysis.run_checks import checked
from tests.generic_truth import Truth
from tests.schemas import schema
from ztprobe.rundir.store import load_run

RECORDED = Path(__file__).parents[1] / "data" / "attached-hub"
HUB_POLLED_S = {"server": 0.6, "client-1": 0.8, "client-2": 0.8}
MS = 1_000_000
NODE, HUB = Process(1, participant="client"), Process(2, participant="hub")
KEY = Wire(Endpoint("a", 1), Endpoint("b", 2))


@functools.cache
def analysed() -> Analysed:
    return load_analysed(RECORDED)


@functools.cache
def report() -> dict[str, Any]:
    return build_report(analysed().run, analysed().ledger, None)


def said(asks: bool, first_ms: float, last_ms: float, count: int = 100, way_ms: float = 0.0) -> Turn:
    """A request of the node's or an answer of the hub's."""
    speaker, listener = (NODE, HUB) if asks else (HUB, NODE)
    first, last, way = (int(ms * MS) for ms in (first_ms, last_ms, way_ms))
    return Turn(
        speaker=speaker,
        listener=listener,
        asks=asks,
        first_ns=first,
        last_ns=last,
        arrived_ns=first + way,
        whole_ns=last + way,
        read_ns=0,
        read_whole_ns=0,
        bytes=count,
        first_seq=0,
        pod="",
        key=KEY,
    )


def poll(at_ms: float, took_ms: float = 2.0, count: int = 100) -> Exchange:
    return Exchange(said(True, at_ms, at_ms), said(False, at_ms + took_ms, at_ms + took_ms, count))


def talk(*exchanges: Exchange) -> Talk:
    return Talk(sorted(exchanges, key=lambda one: one.begun_ns))


def milliseconds(pieces: list[Segment]) -> list[tuple[str, float]]:
    return [(one.component, (one.end_ns - one.start_ns) / MS) for one in pieces]


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


def test_the_wait_ends_with_the_first_request_of_the_fetch() -> None:
    """In vain at 0 and 1 s; there from 1.4 s on; asked for at 2 s, fetched in two parts."""
    first, second = poll(2_004, count=500_000), poll(2_020, count=500_000)
    found = talk(poll(0), poll(1_000), poll(2_000), first, second)
    part = first.answer
    assert part is not None
    assert found.fetch_began_ns(part, 1_400 * MS) == 2_000 * MS
    # A request that waited with the hub was there before: nobody had to ask any more.
    held = Exchange(said(True, 1_000, 1_000), said(False, 1_401, 1_500, 500_000))
    assert held.answer is not None
    assert talk(poll(0), held).fetch_began_ns(held.answer, 1_400 * MS) == 1_400 * MS


def test_a_heartbeat_before_a_poll_fetches_nothing() -> None:
    """In vain every 3 s; a heartbeat at 8.9 s, the poll that brings news at 9 s, then the message."""
    polls = [poll(at_ms, count=50) for at_ms in (0, 3_000, 6_000)]
    heartbeat = Exchange(said(True, 8_900, 8_900, 115), said(False, 8_902, 8_902, 52))
    brings_news = poll(9_000, count=400)
    message = Exchange(said(True, 9_006, 9_006, 180), said(False, 9_010, 9_050, 500_000))
    found = talk(*polls, heartbeat, brings_news, message)
    assert message.answer is not None
    askers = frozenset((NODE,))
    assert found.fetch_began_ns(message.answer, 6_500 * MS, askers=askers) == 9_000 * MS
    # Of who does not poll, what leads to a message without a pause belongs to it.
    assert (
        talk(heartbeat, brings_news, message).fetch_began_ns(message.answer, 6_500 * MS, askers=askers)
        == 8_900 * MS
    )


def test_each_instant_of_a_hop_has_one_owner() -> None:
    """Sent at 10, there at 15; answered from 30 on, there at 35, whole at 45; nothing until 60."""
    request, answer = said(True, 10, 10, way_ms=5), said(False, 30, 40, 500_000, way_ms=5)
    base = hop_segments(
        [Exchange(request, answer)], 0, 60 * MS, asked="store_and_forward", unasked="poll_wait"
    )
    assert milliseconds(paint(0, 60 * MS, base, [])) == [
        ("poll_wait", 10),
        ("propagation", 5),
        ("store_and_forward", 15),
        ("propagation", 5),
        ("transmission", 10),
        ("poll_wait", 15),
    ]


def test_a_request_that_is_cut_on_its_way_is_on_it_until_all_is_there() -> None:
    """In two packets that left together and arrived at 50 and 92 ms; frames pause where they are sent."""
    cut = dataclasses.replace(said(True, 0, 0.1, way_ms=50), whole_ns=92 * MS)
    frames = said(True, 0, 42, way_ms=50)
    for request, moved in (
        (cut, [("propagation", 50), ("transmission", 42)]),
        (frames, [("propagation", 50)]),
    ):
        base = hop_segments(
            [Exchange(request, said(False, 95, 95))],
            0,
            92 * MS,
            asked="store_and_forward",
            unasked="poll_wait",
        )
        assert milliseconds(paint(0, 92 * MS, base, []))[: len(moved)] == moved
        assert all(
            name != "transmission" for name, _ in milliseconds(paint(0, 92 * MS, base, []))[len(moved) :]
        )


def test_a_model_may_answer_the_update_of_the_round_before() -> None:
    """A server that speaks first: its next model stands behind the last update on the connection."""
    stream = talk(Exchange(said(True, 0, 100, 500_000), said(False, 900, 1_100, 500_000)))
    found = stream.during(900 * MS, 1_100 * MS)
    base = hop_segments(found, 900 * MS, 1_100 * MS, asked="server", unasked="server")
    assert milliseconds(paint(900 * MS, 1_100 * MS, base, [])) == [("transmission", 200)]


def test_what_is_told_once_is_no_poll() -> None:
    result = Exchange(said(True, 2_500, 2_500, 900), said(False, 2_510, 2_510))
    found = talk(*(poll(at) for at in range(0, 6_000, 1_000)), result)
    speakers = frozenset((NODE,))
    assert len(found.polls(speakers)) == 6
    reply = found.reply(speakers, 2_200 * MS, 6_000 * MS)
    assert reply is not None
    assert reply.first_ns == 2_500 * MS
    assert found.reply(speakers, 3_500 * MS, 6_000 * MS) is None


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


def test_a_tls_handshake_is_no_message_on_its_way() -> None:
    key, tls = shaking_hands()
    begun_ns, over_ns = tls.client_hello_ns, tls.finished_ns
    assert over_ns is not None and over_ns - begun_ns > 100 * MS
    channel = on(key, (True, begun_ns, begun_ns), (False, over_ns - MS, over_ns - MS))
    base = [Segment(begun_ns, over_ns, "propagation")]
    overlays = setups_of(secured(), [channel], frozenset((NODE, HUB)))
    assert paint(begun_ns, over_ns, base, overlays) == [Segment(begun_ns, over_ns, "tls_handshake")]
    # Another connection's message goes on beside it: that is what the time went into.
    other = Wire(Endpoint("a", 3), Endpoint("b", 4))
    beside = on(other, (True, begun_ns, begun_ns + 50 * MS))
    overlays = setups_of(secured(), [channel, beside], frozenset((NODE, HUB)))
    assert paint(begun_ns, over_ns, base, overlays) == [
        Segment(begun_ns, begun_ns + 50 * MS, "propagation"),
        Segment(begun_ns + 50 * MS, over_ns, "tls_handshake"),
    ]
    # What an application says to its own proxy is nobody's handshake.
    alone = dataclasses.replace(channel.turns[0], listener=NODE)
    assert not setups_of(secured(), [Channel(key, 1, [alone])], frozenset((NODE, HUB)))


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


def test_a_message_is_there_with_its_last_small_part() -> None:
    """Whoever has handed it over may poll at once, which is no part of it."""
    polls = [poll(at_ms, count=50) for at_ms in (0, 3000, 6000)]
    large = Exchange(said(True, 8000, 8100, 1_000_000), said(False, 8102, 8102))
    small = Exchange(said(True, 8104, 8104, 900), said(False, 8106, 8106))
    behind = poll(8110)
    whole = talk(*polls, large, small, behind, poll(11_110))
    assert large.request is not None
    assert whole.handed(large.request, large.request.had_ns) == (8104 * MS, 8106 * MS)
    assert whole.over_ns(large.request, large.request.had_ns) >= 8112 * MS
    heartbeat = Exchange(said(True, 8_111, 8_111, 400), said(False, 8_113, 8_113))
    beside = talk(*polls, large, small, behind, heartbeat, poll(11_110))
    assert beside.handed(large.request, large.request.had_ns) == (8104 * MS, 8106 * MS)
    # It can be had once the hub has seen to it: of several parts at once, to the last of them.
    slow = Exchange(large.request, said(False, 8_190, 8_190))
    assert talk(*polls, slow, small).handed(large.request, large.request.had_ns) == (8104 * MS, 8190 * MS)
    assert [one.begun_ns // MS for one in whole.after_pauses(frozenset((NODE,)), 0, 9000 * MS)] == [
        3000,
        6000,
        8000,
    ]
