"""Painting is exact: no instant is lost or owned twice, whatever the segments look like."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from analysis.intervals import Segment, clip, merged, overlap_ns, paint, total_ns, union

_TIMES = st.integers(-50, 150)
_NAMES = st.sampled_from(["server", "compute", "transmission", "proxy"])
_SEGMENTS = st.lists(
    st.builds(Segment, _TIMES, _TIMES, _NAMES, st.lists(_NAMES, max_size=2).map(tuple)), max_size=8
)
_SPANS = st.lists(st.tuples(_TIMES, _TIMES), max_size=8)


@given(_SEGMENTS, _SEGMENTS)
def test_pieces_cover_the_round_exactly(base: list[Segment], overlays: list[Segment]) -> None:
    pieces = paint(0, 100, base, overlays)
    assert pieces[0].start_ns == 0 and pieces[-1].end_ns == 100
    assert all(a.end_ns == b.start_ns for a, b in itertools.pairwise(pieces))
    assert sum(p.end_ns - p.start_ns for p in pieces) == 100


@given(_SEGMENTS, _SEGMENTS)
def test_every_instant_has_the_owner_the_rules_give_it(base: list[Segment], overlays: list[Segment]) -> None:
    pieces = paint(0, 100, base, overlays)
    for t in range(100):
        owner = next((s.component for s in base if s.start_ns <= t < s.end_ns), "residual")
        taken = next(
            (s.component for s in overlays if s.start_ns <= t < s.end_ns and (not s.over or owner in s.over)),
            owner,
        )
        assert next(p.component for p in pieces if p.start_ns <= t < p.end_ns) == taken


@given(_SPANS, _SPANS)
def test_overlap_is_what_counting_says(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    inside = [any(s <= t < e for s, e in a) and any(s <= t < e for s, e in b) for t in range(-50, 150)]
    assert overlap_ns(a, b) == sum(inside)


@given(_SPANS)
def test_union_is_sorted_and_disjoint(spans: list[tuple[int, int]]) -> None:
    merged = union(spans)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))
    assert total_ns(merged) == sum(any(s <= t < e for s, e in spans) for t in range(-50, 150))
    assert all(0 <= s < e <= 100 for s, e in clip(merged, 0, 100))


def test_an_overlay_takes_only_from_whom_it_may() -> None:
    base = [Segment(0, 50, "transmission"), Segment(50, 100, "compute")]
    pieces = paint(0, 100, base, [Segment(40, 60, "retransmission", ("transmission",))])
    assert [(p.component, p.end_ns - p.start_ns) for p in pieces] == [
        ("transmission", 40),
        ("retransmission", 10),
        ("compute", 50),
    ]


@given(_SPANS)
def test_arrays_merge_as_pairs_do(spans: list[tuple[int, int]]) -> None:
    starts, ends = np.array(sorted(spans), dtype=np.int64).reshape(-1, 2).T
    assert merged(starts, ends) == union(spans)
