"""Which of the messages that pass a hub are whose."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.flows.copies import Update, taken_of
from analysis.flows.exchanges import Refused
from analysis.flows.turns import Turn
from tests.turns import MS, said


def part(at_ms: int, count: int) -> Turn:
    """Of a message, as it was taken from the hub."""
    return said(False, at_ms, at_ms, count)


def message(announced_ms: int, *arrived: tuple[int, int], whole_ms: int | None = None) -> Update:
    """A client's: when each part of it was with the hub, and how long that is."""
    parts = tuple(said(True, at_ms, at_ms, count) for at_ms, count in arrived)
    last_ms = max(at_ms for at_ms, _ in arrived)
    return Update(announced_ms * MS, (last_ms if whole_ms is None else whole_ms) * MS, parts)


def whole(announced_ms: int, whole_ms: int) -> Update:
    """One of 1,000,000 bytes."""
    return message(announced_ms, (whole_ms, 1_000_000))


def taken(
    parts: list[Turn],
    polls_ms: Sequence[int] = (),
    refused_ms: Sequence[tuple[int, int]] = (),
    **updates: Update,
) -> dict[str, list[int]]:
    """Client -> when its parts were taken, in milliseconds."""
    refused = [Refused(at_ms * MS, again_ms * MS) for at_ms, again_ms in refused_ms]
    found = taken_of(parts, updates, [ms * MS for ms in polls_ms], refused)
    return {client: [turn.first_ns // MS for turn in mine] for client, mine in found.items()}


def test_what_was_announced_first_is_taken_first() -> None:
    parts = [part(3_000, 1_000_000), part(3_100, 1_000_000)]
    found = taken(parts, late=whole(200, 400), early=whole(100, 600))
    assert found == {"early": [3_000], "late": [3_100]}


def test_what_the_hub_did_not_have_yet_is_not_taken() -> None:
    parts = [part(3_000, 1_000_000), part(6_000, 1_000_000)]
    found = taken(parts, slow=whole(100, 5_000), fast=whole(200, 400))
    assert found == {"fast": [3_000], "slow": [6_000]}
    # What nobody's message can have been is left out.
    assert taken([part(300, 1_000_000), *parts], fast=whole(200, 400)) == {"fast": [3_000]}


def test_what_is_not_whole_is_taken_part_by_part() -> None:
    """As a SuperLink did: it had announced the message, whose last small part came after it was asked for."""
    parts = [part(at_ms, count) for at_ms in (3_000, 6_000) for count in (10_000, 990_000)]
    first = message(2_500, (2_700, 10_000), (2_900, 990_000), whole_ms=3_150)
    second = message(2_800, (2_950, 10_000), (3_200, 990_000))
    assert taken(parts, first=first, second=second) == {"first": [3_000, 3_000], "second": [6_000, 6_000]}


def test_a_message_of_which_the_last_part_is_missing_is_the_last_of_its_batch() -> None:
    """Its small part is handed on, its large one is not there; it was announced before another."""
    parts = [part(7_000, 1_000_000), part(7_060, 10_000), part(7_900, 990_000)]
    large = message(6_200, (6_300, 10_000), (7_500, 990_000))
    assert taken(parts, large=large, other=whole(6_400, 6_800)) == {"other": [7_000], "large": [7_060, 7_900]}


def test_what_was_announced_after_a_poll_is_taken_after_the_next() -> None:
    """Taken by the poll at 1 s: a message whose large part is asked for again, and comes at 4 s."""
    parts = [part(1_200, 10_000), part(4_000, 990_000), part(7_000, 1_000_000)]
    in_time = message(900, (1_100, 10_000), (3_900, 990_000), whole_ms=4_300)
    found = taken(parts, [1_000, 6_900], in_time=in_time, too_late=whole(1_700, 2_300))
    assert found == {"in_time": [1_200, 4_000], "too_late": [7_000]}
    # What a poll before it cannot have told of is not taken, even if it was announced first.
    parts = [part(2_500, 1_000_000), part(7_000, 1_000_000)]
    found = taken(parts, [1_000, 6_900], told=whole(900, 2_400), untold=whole(1_100, 2_300))
    assert found == {"told": [2_500], "untold": [7_000]}


def test_what_had_been_refused_was_not_whole_then() -> None:
    """One poll told of both; parts of one were refused at 1.2 s and asked for again at 2 s."""
    parts = [part(2_050, 1_000_000), part(2_300, 1_000_000)]
    updates = {"whole": whole(500, 900), "not_yet": whole(800, 1_400)}
    assert taken(parts, [1_000], **updates) == {"whole": [2_050], "not_yet": [2_300]}
    assert taken(parts, [1_000], [(1_200, 2_000)], **updates) == {"not_yet": [2_050], "whole": [2_300]}
    # Of another message than what a later poll told of.
    assert taken(parts, [2_010], [(1_200, 2_000)], **updates) == {"whole": [2_050], "not_yet": [2_300]}
