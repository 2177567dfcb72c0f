"""Which of the messages that pass a hub are whose."""

from __future__ import annotations

from analysis.flows.copies import Update, taken_of
from analysis.flows.turns import Turn
from tests.turns import MS, said


def part(at_ms: int, count: int) -> Turn:
    """Of a message, as it was taken from the hub."""
    return said(False, at_ms, at_ms, count)


def message(announced_ms: int, begun_ms: int, whole_ms: int) -> Update:
    """A client's, of 1,000,000 bytes."""
    return Update(1_000_000, announced_ms * MS, begun_ms * MS, whole_ms * MS)


def taken(parts: list[Turn], **updates: Update) -> dict[str, list[int]]:
    """Client -> when its parts were taken, in milliseconds."""
    return {
        client: [turn.first_ns // MS for turn in mine] for client, mine in taken_of(parts, updates).items()
    }


def test_what_was_announced_first_is_taken_first() -> None:
    parts = [part(3_000, 1_000_000), part(3_100, 1_000_000)]
    found = taken(parts, late=message(200, 300, 400), early=message(100, 500, 600))
    assert found == {"early": [3_000], "late": [3_100]}


def test_where_that_leaves_somebody_out_the_first_that_was_whole_is() -> None:
    parts = [part(3_000, 1_000_000), part(6_000, 1_000_000)]
    found = taken(parts, slow=message(100, 4_000, 5_000), fast=message(200, 300, 400))
    assert found == {"fast": [3_000], "slow": [6_000]}


def test_what_is_not_whole_is_taken_part_by_part() -> None:
    """As a SuperLink did: it had announced the message, whose last small part came after it was asked for."""
    parts = [part(at_ms, count) for at_ms in (3_000, 6_000) for count in (10_000, 990_000)]
    found = taken(parts, first=message(2_500, 2_700, 3_150), second=message(2_800, 2_950, 3_200))
    assert found == {"first": [3_000, 3_000], "second": [6_000, 6_000]}


def test_what_was_announced_after_a_poll_is_taken_after_the_next() -> None:
    """Taken by the poll at 1 s: a message whose large part is asked for again, and comes at 4 s."""
    parts = [part(1_200, 10_000), part(4_000, 990_000), part(7_000, 1_000_000)]
    updates = {"in_time": message(900, 1_100, 4_300), "too_late": message(1_700, 2_000, 2_300)}
    # Without the polls nothing tells that it was not the one that was whole first.
    assert taken(parts, **updates) == {"too_late": [4_000], "in_time": [7_000]}
    found = taken_of(parts, updates, [1_000 * MS, 6_900 * MS])
    assert {client: [turn.first_ns // MS for turn in mine] for client, mine in found.items()} == {
        "in_time": [1_200, 4_000],
        "too_late": [7_000],
    }
