"""Hops made by hand: who owns each instant, where a message begins and ends."""

from __future__ import annotations

import dataclasses

from analysis.flows.exchanges import Exchange, exchanges_of, in_vain_bytes
from analysis.flows.hops import hop_segments
from analysis.intervals import Segment, paint
from tests.turns import MS, NODE, poll, said, talk


def milliseconds(pieces: list[Segment]) -> list[tuple[str, float]]:
    return [(one.component, (one.end_ns - one.start_ns) / MS) for one in pieces]


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
    """In two packets that left together and arrived at 50 and 92 ms; what was asked left behind frames."""
    cut = dataclasses.replace(said(True, 0, 0.1, way_ms=50), whole_ns=92 * MS)
    frames = said(True, 0, 42, way_ms=50)
    for request, moved in (
        (cut, [("propagation", 50), ("transmission", 42)]),
        (frames, [("poll_wait", 42), ("propagation", 50)]),
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


def test_a_frame_behind_a_small_part_that_was_answered_is_no_part_of_it() -> None:
    """It arrives 85 ms after the part has been answered, in the same turn."""
    large = Exchange(said(True, 8_000, 8_100, 1_000_000), said(False, 8_102, 8_102))
    asked = dataclasses.replace(said(True, 8_104, 8_180, 900), arrived_ns=8_150 * MS, whole_ns=8_240 * MS)
    small = Exchange(asked, said(False, 8_155, 8_155, way_ms=80))
    assert large.request is not None
    assert talk(large, small).handed(large.request, 8_100 * MS) == (8_155 * MS, 8_155 * MS)
    # Without an answer all of it may be a part.
    alone = talk(large, Exchange(asked, None))
    assert alone.handed(large.request, 8_100 * MS).had_ns == 8_240 * MS


def test_a_part_in_a_turn_with_frames_is_no_poll_however_long() -> None:
    """The poll brings news at 9 s; of the two parts asked for then one is as long as a poll with frames."""
    polls = [poll(at_ms, count=50) for at_ms in (0, 3_000, 6_000)]
    news = poll(9_000, count=400)
    first = Exchange(said(True, 9_010, 9_010, 171), said(False, 9_200, 9_200, 300))
    spread = Exchange(said(True, 9_020, 9_060, 197), said(False, 9_190, 9_190, 300))
    message = Exchange(said(True, 9_210, 9_210, 175), said(False, 9_220, 9_300, 500_000))
    assert message.answer is not None
    found = talk(*polls, news, first, spread, message)
    assert found.fetch_began_ns(message.answer, 6_500 * MS, askers=frozenset((NODE,))) == 9_000 * MS


def test_parts_that_are_asked_for_once_more_bring_no_news() -> None:
    """News at 3 s of a reply whose last part is not there: it is asked for again at 4.2 s, and fetched."""
    parts = [
        Exchange(said(True, at_ms, at_ms, 180), said(False, at_ms + 2, at_ms + 2, 300))
        for at_ms in (
            *(3_010, 3_020),
            *(4_200, 4_210),
            *(7_010, 7_020),
        )
    ]
    polls = [poll(at_ms, count=400) for at_ms in (1_000, 3_000, 7_000)]
    found = talk(*sorted([*polls, *parts], key=lambda one: one.begun_ns))
    begun = [one.begun_ns // MS for one in found.after_pauses(frozenset((NODE,)), 0, 9_000 * MS)]
    assert begun == [1_000, 3_000, 7_000]
    assert [
        one.begun_ns // MS for one in found.after_pauses(frozenset((NODE,)), 3_001 * MS, 7_000 * MS)
    ] == []


def test_frames_that_nobody_answers_come_between_no_polls() -> None:
    """Every 3 s, each with an acknowledgement of its answer behind it; once a heartbeat comes between two."""
    polls = [poll(at_ms) for at_ms in (1_000, 4_002, 7_004, 10_006, 12_500)]
    frames = [Exchange(said(True, at_ms + 3, at_ms + 3, 56), None) for at_ms in (1_000, 4_002, 7_004)]
    heartbeat = Exchange(said(True, 11_000, 11_000, 130), said(False, 11_002, 11_002, 52))
    found = talk(*polls, *frames, heartbeat)
    assert found.poll_pause_ns(frozenset((NODE,))) == 3_000 * MS
    assert talk(*polls[:1]).poll_pause_ns(frozenset((NODE,))) is None


def test_a_poll_in_one_more_record_of_tls_brings_the_news() -> None:
    """In vain every 3 s; a heartbeat at 8.7 s, then a poll that is 22 bytes longer, and the message."""
    polls = [poll(at_ms, count=50) for at_ms in (0, 3_000, 6_000)]
    asked = polls[0].request
    assert asked is not None
    heartbeat = Exchange(said(True, 8_700, 8_700, asked.bytes + 15), said(False, 8_810, 8_810, 50 + 22))
    longer = Exchange(said(True, 9_000, 9_000, asked.bytes + 22), said(False, 9_004, 9_004, 400))
    message = Exchange(said(True, 9_010, 9_010, 180), said(False, 9_014, 9_050, 500_000))
    assert message.answer is not None
    found = talk(*polls, heartbeat, longer, message)
    assert found.fetch_began_ns(message.answer, 6_500 * MS, askers=frozenset((NODE,))) == 9_000 * MS


def test_a_heartbeat_right_before_a_task_hands_its_update_over_is_no_part_of_that() -> None:
    beat = Exchange(said(True, 900, 900, 612), said(False, 902, 902, 130))
    tells = Exchange(said(True, 1_100, 1_100, 2_178), said(False, 1_107, 1_107, 1_555))
    update = Exchange(said(True, 1_120, 1_140, 4_700_000), said(False, 1_145, 1_145, 130))
    found = talk(beat, tells, update)
    assert update.request is not None
    assert found.fetch_began_ns(update.request, 0, pause_ns=100 * MS) == 1_100 * MS
    assert found.fetch_began_ns(update.request, 0) == 900 * MS


def test_a_frame_that_arrives_with_the_next_poll_is_no_part_of_the_message_before() -> None:
    polls = [poll(at_ms, count=50) for at_ms in (0, 3_000, 6_000)]
    large = Exchange(said(True, 8_000, 8_040, 500_000), said(False, 8_050, 8_050, 127))
    frame = Exchange(said(True, 8_060, 8_060, 52, way_ms=110), None)
    asks = poll(8_090)
    assert large.request is not None
    found = talk(*polls, large, frame, asks)
    assert found.handed(large.request, 8_040 * MS) == (8_040 * MS, 8_050 * MS)


def test_a_heartbeat_as_long_as_a_poll_beside_it_is_no_part_of_the_message_before() -> None:
    polls = [poll(at_ms, count=50) for at_ms in (0, 3_000, 6_000)]
    large = Exchange(said(True, 8_000, 8_040, 500_000), said(False, 8_050, 8_050, 127))
    asks = poll(8_090, took_ms=110)
    heartbeat = Exchange(said(True, 8_190, 8_190, 115), said(False, 8_300, 8_300, 130))
    found = talk(*polls, large, asks, heartbeat)
    assert large.request is not None
    assert found.handed(large.request, 8_040 * MS) == (8_040 * MS, 8_050 * MS)


def test_a_heartbeat_on_a_connection_of_its_own_is_no_part_of_a_message() -> None:
    """Such ones came alone before, each behind a handshake."""
    polls = [poll(at_ms, count=50) for at_ms in range(3_000, 21_000, 3_000)]
    beats = [
        exchange
        for at_ms in (2_000, 22_003, 42_030)
        for exchange in (
            Exchange(said(True, at_ms, at_ms, 260), said(False, at_ms + 1, at_ms + 1, 955)),
            Exchange(said(True, at_ms + 2, at_ms + 2, 1_535), said(False, at_ms + 4, at_ms + 4, 152)),
        )
    ]
    update = [
        Exchange(said(True, 42_000, 42_020, 500_000), said(False, 42_022, 42_022, 130)),
        Exchange(said(True, 42_024, 42_024, 1_799), said(False, 42_026, 42_026, 130)),
    ]
    found = talk(*polls, *beats, *update)
    lone = found.lone_bytes(frozenset((NODE,)))
    assert sorted(lone) == [260, 260, 1_535, 1_535]
    assert update[0].request is not None
    assert found.handed(update[0].request, 42_020 * MS).had_ns == 42_032 * MS
    assert found.handed(update[0].request, 42_020 * MS, lone) == (42_024 * MS, 42_026 * MS)


def test_who_asks_for_the_only_part_of_a_message_sends_no_heartbeat() -> None:
    """It stands alone behind the poll that told of it, and is hardly longer than that. Who has handed one
    over may poll at once."""
    rounds = [
        (
            Exchange(
                said(True, start_ms - 50, start_ms - 50, 20_000),
                said(False, start_ms - 40, start_ms - 40, 90),
            ),
            poll(start_ms, count=130),
            Exchange(
                said(True, start_ms + 1_000, start_ms + 1_000),
                said(False, start_ms + 1_200, start_ms + 1_200, 147),
            ),
            Exchange(
                said(True, start_ms + 1_201, start_ms + 1_201, 103),
                said(False, start_ms + 1_203, start_ms + 1_203, 20_000),
            ),
        )
        for start_ms in (100, 5_000, 10_000)
    ]
    found = talk(*(one for each in rounds for one in each))
    askers = frozenset((NODE,))
    assert not found.lone_bytes(askers)
    part = rounds[1][3].answer
    assert part is not None
    beside = found.heartbeats(askers, found.lone_bytes(askers))
    assert found.fetch_began_ns(part, 5_500 * MS, beside, askers) == 6_000 * MS


def test_polls_that_mostly_bring_something_are_told_from_those_in_vain() -> None:
    """Where rounds are short, more polls bring news than not."""
    news = [
        poll(at_ms, count=count) for at_ms, count in ((0, 537), (3_000, 946), (6_000, 1_701), (9_000, 537))
    ]
    in_vain = [poll(at_ms, count=128) for at_ms in (12_000, 15_000)]
    assert in_vain_bytes([*news, *in_vain]) == 128
    assert in_vain_bytes(news) == 537
    assert in_vain_bytes([]) == 0


def test_parts_that_are_asked_for_again_are_no_polls() -> None:
    """They come more often than polls, after a second each; but their like mostly follows others."""
    polls = [poll(at_ms, count=50) for at_ms in (0, 9_000, 18_000)]
    parts = [
        Exchange(said(True, at_ms, at_ms, 686), said(False, at_ms + 2, at_ms + 2, 130))
        for start_ms in (10, 9_010, 18_010)
        for at_ms in (*range(start_ms, start_ms + 100, 10), start_ms + 1_100, start_ms + 3_100)
    ]
    found = talk(*polls, *parts)
    speakers = frozenset((NODE,))
    assert [one.begun_ns // MS for one in found.polls(speakers)] == [0, 9_000, 18_000]
    assert found.asked_again(speakers, 0, 9_000 * MS) == [(102 * MS, 1_110 * MS), (1_112 * MS, 3_110 * MS)]


def test_a_frame_long_before_a_poll_in_the_same_turn_is_no_part_of_it() -> None:
    """It follows a heartbeat's answer; the poll comes 0.9 s later, with nothing said in between."""
    polls = [poll(at_ms, count=50) for at_ms in (0, 3_000, 6_000)]
    asked = polls[0].request
    assert asked is not None
    heartbeat = Exchange(said(True, 7_900, 7_900, asked.bytes), said(False, 7_920, 7_920, 60))
    news = Exchange(
        said(True, 8_000, 8_900, asked.bytes + 66, way_ms=80), said(False, 8_990, 8_990, 400, way_ms=80)
    )
    message = Exchange(said(True, 9_080, 9_080, 180), said(False, 9_090, 9_150, 500_000))
    assert message.answer is not None
    found = talk(*polls, heartbeat, news, message)
    assert found.fetch_began_ns(message.answer, 6_500 * MS, askers=frozenset((NODE,))) == 8_900 * MS
    wait = found.during(7_950 * MS, 8_990 * MS)
    base = hop_segments(wait, 7_950 * MS, 8_990 * MS, asked="store_and_forward", unasked="poll_wait")
    assert milliseconds(paint(7_950 * MS, 8_990 * MS, base, [])) == [
        ("poll_wait", 950),
        ("propagation", 80),
        ("store_and_forward", 10),
    ]


def test_a_heartbeat_before_a_poll_on_a_new_connection_fetches_nothing() -> None:
    """The poll stands behind its client's certificate, and is as long as no other."""
    polls = [poll(at_ms, count=50) for at_ms in (0, 3_000, 6_000)]
    asked = polls[0].request
    assert asked is not None
    heartbeat = Exchange(said(True, 8_700, 8_700, asked.bytes + 15), said(False, 8_760, 8_760, 52))
    hello = Exchange(said(True, 8_920, 8_920, 260), said(False, 8_990, 8_990, 952))
    news = Exchange(said(True, 9_000, 9_000, 1_524), said(False, 9_070, 9_070, 1_658))
    message = Exchange(said(True, 9_080, 9_080, 180), said(False, 9_090, 9_150, 500_000))
    assert message.answer is not None
    found = talk(*polls, heartbeat, hello, news, message)
    askers = frozenset((NODE,))
    beside = found.heartbeats(askers, [asked.bytes + 12])
    assert beside == [heartbeat]
    assert found.fetch_began_ns(message.answer, 6_500 * MS, beside, askers) == 8_920 * MS


def test_what_leaves_before_all_of_a_request_is_there_is_no_answer_to_it() -> None:
    """Tickets of TLS: they answer the handshake's end, which stands in front of the request."""
    request = dataclasses.replace(said(True, 0, 2, 1_524, way_ms=70), whole_ns=82 * MS)
    ticket, answer = said(False, 71, 71, 158, way_ms=73), said(False, 88, 88, 1_658, way_ms=100)
    assert exchanges_of([request, ticket, answer]) == [Exchange(request, answer)]
    late = said(False, 85, 85, 158, way_ms=73)
    hello, hello_answer = said(True, -200, -200, 260, way_ms=70), said(False, -120, -120, 953, way_ms=70)
    assert exchanges_of([hello, hello_answer, request, late, answer])[1:] == [Exchange(request, answer)]
    assert exchanges_of([request, late, answer])[0] == Exchange(request, late)


def test_a_result_that_nobody_answered_is_there_with_the_next_that_is_like_it() -> None:
    """Sent on a connection that was just being closed, and 0.9 s later on another."""
    lost = Exchange(said(True, 1_000, 1_000, 1_290), None)
    heartbeat = Exchange(said(True, 1_500, 1_500, 890), said(False, 1_502, 1_502, 152))
    again = Exchange(said(True, 1_900, 1_900, 1_294), said(False, 1_910, 1_910, 484))
    part = Exchange(said(True, 1_950, 1_950, 1_048), said(False, 1_960, 1_960, 174))
    assert lost.request is not None
    found = talk(lost, heartbeat, again, part)
    assert found.handed(lost.request, 1_000 * MS, [890]) == (1_950 * MS, 1_960 * MS)
    # What follows is something else.
    assert talk(lost, part).handed(lost.request, 1_000 * MS).had_ns == 1_000 * MS


def test_polls_are_found_where_parts_are_asked_for_alike() -> None:
    """A model in five parts, each for a request as long as a poll: most such requests follow another."""
    polls = [poll(at_ms, count=50) for at_ms in (0, 1_000, 5_000)]
    parts = [
        Exchange(said(True, at_ms, at_ms), said(False, at_ms + 5, at_ms + 5, 600_000))
        for start_ms in (2_000, 6_000)
        for at_ms in range(start_ms, start_ms + 50, 10)
    ]
    found = talk(*polls, *parts)
    assert [one.begun_ns // MS for one in found.polls(frozenset((NODE,)))] == [0, 1_000, 2_000, 5_000, 6_000]
