"""A framework's timeouts against what was measured."""

from __future__ import annotations

from analysis.rounds.messages import TrafficTransfer
from analysis.rounds.timeouts import longest_of, timeout_rows, warnings_of
from analysis.rounds.transfers import Seen
from ztprobe.frameworks.timeouts import BOUNDS, timeouts_of

SECOND = 1_000_000_000


def test_what_is_longest() -> None:
    seen = Seen(
        [
            TrafficTransfer(0, 3 * SECOND, "a", True, 5_000_000),
            TrafficTransfer(3 * SECOND, 5 * SECOND, "a", True, 5_000_000),
            TrafficTransfer(9 * SECOND, 13 * SECOND, "a", False, 10_000_000),
            TrafficTransfer(13 * SECOND, 99 * SECOND, "a", True, 400),  # a poll
        ],
        [TrafficTransfer(0, 4 * SECOND, "", True, 10_000_000)],
    )
    assert longest_of(seen) == {"part": 4 * SECOND, "message": 5 * SECOND, "exchange": 13 * SECOND}
    assert longest_of(Seen([], [])) == {}


def test_a_margin_below_two_is_warned_of() -> None:
    rows = timeout_rows("flower", "1.42.0", {"part": 16 * SECOND, "message": 20 * SECOND})
    (said,) = warnings_of(rows)
    assert "HTTP silence (30 s)" in said and "1.9 times" in said and "16.0 s" in said and "\n" not in said
    assert rows[0]["name"] == "HTTP silence"
    assert next(row for row in rows if row["name"] == "life of a message")["margin"] is None
    exceeded = warnings_of(timeout_rows("nvflare", "2.9.0", {"message": 400 * SECOND}))
    assert any("was exceeded" in one and "communication_timeout" in one for one in exceeded)
    assert not warnings_of(timeout_rows("flower", None, {"part": SECOND}))


def test_each_framework_has_those_of_its_wire() -> None:
    assert timeout_rows("generic", None, {"part": SECOND}) == []
    names = {
        version: {one.name for one in timeouts_of("flower", version)}
        for version in ("1.42.0", "1.38.0", None)
    }
    assert names["1.38.0"] - names["1.42.0"] == {"gRPC keepalive"} and names[None] == names["1.42.0"]
    every = [one for framework in ("flower", "nvflare") for one in timeouts_of(framework, "1.38.0")]
    assert all(one.bounds in BOUNDS for one in every)
