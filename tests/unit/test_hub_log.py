"""What the framework tests read out of a SuperLink's log, and hold waits against."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.frameworks.hub_log import HubWait, hub_waits

BEGUN = datetime(2026, 11, 28, 14, 0, 0, tzinfo=UTC)
MS = 1_000_000
ADDRESSES = {"10.244.0.3": 0, "10.244.0.4": 1}


def flwr(at_ms: int, text: str) -> str:
    """A line of Flower's logger: local time, in colours."""
    at = (BEGUN + timedelta(milliseconds=at_ms)).astimezone()
    stamp = f"{at:%Y-%m-%d %H:%M:%S},{at.microsecond // 1000:03}"
    return f"\x1b[94mDEBUG {stamp}\x1b[0m:     {text}"


def access(at_ms: int, peer: str, what: str, api: str = "fleet") -> str:
    """A line of uvicorn's, in UTC."""
    at = BEGUN + timedelta(milliseconds=at_ms)
    stamp = f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"
    return f'{stamp} DEBUG [uvicorn.access] {peer} - "POST /v1/{api}/{what} HTTP/1.1" 200'


# One model for both, of which the second's part comes late; then both push at the same time.
LINES = [
    flwr(0, "[Fleet.PullMessages] node_id=70"),
    flwr(1000, "Runtime.PushMessages"),
    flwr(1040, "Runtime.PushObject"),
    flwr(1090, "Runtime.PushObject"),
    access(1100, "127.0.0.1:4000", "push-object", "runtime"),
    flwr(3000, "[Fleet.PullMessages] node_id=70"),
    access(3004, "10.244.0.3:5000", "pull-messages"),
    flwr(3500, "[Fleet.PullMessages] node_id=71"),
    flwr(5000, "Runtime.PullMessages"),
    flwr(6000, "[Fleet.PushMessages] Push replies from node_id=70"),
    flwr(6010, "[Fleet.PushMessages] Push replies from node_id=71"),
    flwr(6100, "[Fleet.PushObject] Push Object with object_id=aa"),
    access(6103, "10.244.0.3:5000", "push-object"),
    flwr(6300, "[Fleet.PushObject] Push Object with object_id=bb"),
    access(6302, "10.244.0.4:5001", "push-object"),
    flwr(6400, "[Fleet.PullMessages] node_id=70"),
    flwr(6500, "[Fleet.PullMessages] node_id=71"),
    flwr(8000, "Runtime.PullMessages"),
]
DOWN = [(0, True, 1100, 3000), (1, True, 1100, 3500)]


def waits(logs: Path, lines: list[str], addresses: dict[str, int]) -> list[tuple[int, bool, int, int]]:
    (logs / "superlink.log").write_text("\n".join(lines) + "\n")
    for number, node in enumerate((70, 71)):
        (logs / f"supernode-{number}.log").write_text(f"\x1b[92mINFO \x1b[0m:      SuperNode ID: {node}\n")
    begun_ns = round(BEGUN.timestamp()) * 1000 * MS
    found: list[HubWait] = hub_waits(logs, addresses)
    return [
        (one.client, one.down, (one.stored_ns - begun_ns) // MS, (one.served_ns - begun_ns) // MS)
        for one in found
    ]


def test_waits_are_told_apart_by_who_pushed(tmp_path: Path) -> None:
    assert waits(tmp_path, LINES, ADDRESSES) == [*DOWN, (0, False, 6103, 8000), (1, False, 6302, 8000)]


def test_behind_a_proxy_its_log_tells_who_pushed(tmp_path: Path) -> None:
    proxy = '{"role":"server","peer":"10.244.0.%d:40000","from":"127.0.0.1:%d"}\n'
    (tmp_path / "proxy-fl-server.log").write_text(proxy % (3, 600) + "[NOTICE] ...\n" + proxy % (4, 601))
    lines = [
        line.replace("10.244.0.3:5000", "127.0.0.1:600").replace("10.244.0.4:5001", "127.0.0.1:601")
        for line in LINES
    ]
    assert waits(tmp_path, lines, ADDRESSES) == [*DOWN, (0, False, 6103, 8000), (1, False, 6302, 8000)]


@pytest.mark.parametrize("apart", [False, True])
def test_without_addresses_only_who_pushed_alone_is_told(apart: bool, tmp_path: Path) -> None:
    lines = [line for line in LINES if "node_id=71" not in line] if apart else LINES
    assert waits(tmp_path, lines, {}) == ([DOWN[0], (0, False, 6300, 8000)] if apart else DOWN)
