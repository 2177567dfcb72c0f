"""Ways over several levels, and rounds of several exchanges."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from analysis.evidence.values import Burst, Endpoint, KernelEvents, wire_between
from analysis.intervals import Segment, paint
from analysis.ledger.critical_path import Chain, LedgerExchange
from analysis.ledger.levels import Hop, Level, LevelWay, levels_of, stitched, ways_of
from ztprobe.events.kinds import Direction, Hook

LONG, SHORT, FRAMES = 4_800_000, 200, 60


def message(at_ns: int, *, down: bool, length: int = LONG) -> Any:
    return SimpleNamespace(first_handed_ns=at_ns, down=down, sent=SimpleNamespace(bytes=length))


def exchanges(*messages: Any, window: tuple[int, int] = (100, 900)) -> list[tuple[int | None, int | None]]:
    both: dict[bool, dict[str, list[Any]]] = {True: {"a": []}, False: {"a": []}}
    for one in messages:
        both[one.down]["a"].append(one)
    nothing: Any = None
    level = Level(nothing, {}, both[True], both[False], nothing, {}, ())
    found = level.exchanges("a", window)
    return [tuple(each and each.first_handed_ns for each in one) for one in found]


def test_a_round_is_a_model_and_the_update_that_answers_it() -> None:
    late, model, update, following = (message(at, down=at in (200, 950)) for at in (150, 200, 600, 950))
    assert exchanges(late, model, update, following) == [(200, 600)]
    assert exchanges(model) == [(200, None)]
    assert exchanges(update) == [(None, 600)]
    assert exchanges() == []


def test_frames_beside_a_message_do_not_make_an_exchange_of_their_own() -> None:
    found = exchanges(
        message(200, down=True),
        message(210, down=False, length=FRAMES),
        message(230, down=False, length=SHORT),
        message(300, down=True, length=SHORT),
        message(310, down=True, length=SHORT - 1),
        message(600, down=False),
        message(610, down=True, length=FRAMES),
    )
    assert found == [(200, 230), (310, 600)]


def chain(client: str, *arrivals_ns: int, lengths: tuple[int, ...], base: list[Segment]) -> Chain:
    pairs = [
        LedgerExchange(message(0, down=True, length=length), message(0, down=False, length=length))
        for length in lengths
    ]
    return Chain(client, pairs, list(arrivals_ns), base)


def test_the_path_changes_to_whoever_is_last_in_each_exchange() -> None:
    lengths = (SHORT, LONG, SHORT)
    slow_at_first = chain(
        "a", 40, 60, 90, lengths=lengths, base=[Segment(0, 40, "compute"), Segment(40, 100, "server")]
    )
    slow_trainer = chain(
        "b",
        *(10, 80, 85),
        lengths=lengths,
        base=[
            Segment(0, 10, "compute"),
            Segment(10, 45, "server"),
            Segment(45, 80, "compute"),
            Segment(80, 100, "server"),
        ],
    )
    ways = [LevelWay.over(Hop("s", each, (0, 100))) for each in (slow_at_first, slow_trainer)]
    path = stitched(ways, (0, 100))
    assert path is not None
    assert (path.client, path.workers) == ("b", ("a", "b"))
    pieces = [(p.component, p.start_ns, p.end_ns) for p in paint(0, 100, path.base, path.overlays)]
    assert pieces == [("compute", 0, 40), ("server", 40, 45), ("compute", 45, 80), ("server", 80, 100)]


def test_rounds_of_one_exchange_are_not_stitched() -> None:
    one = chain("a", 40, lengths=(LONG,), base=[])
    assert stitched([LevelWay.over(Hop("s", one, (0, 100)))], (0, 100)) is None


def test_a_way_through_an_edge_fills_the_edges_own_time() -> None:
    upper = chain(
        "edge",
        90,
        lengths=(LONG,),
        base=[Segment(0, 20, "propagation"), Segment(80, 90, "propagation"), Segment(90, 100, "server")],
    )
    lower = [
        chain("a", at_ns, lengths=(LONG,), base=[Segment(20, at_ns, "compute"), Segment(at_ns, 80, "server")])
        for at_ns in (50, 70)
    ]
    ways = [LevelWay.over(Hop("s", upper, (0, 100)), Hop("edge", each, (20, 80))) for each in lower]
    assert ways[1].through == ("edge",) and ways[1].servers == ("s", "edge")
    assert ways[1].arrival_ns == 90
    assert ways[1].behind_ns(ways[0]) == 20
    pieces = [(p.component, p.start_ns, p.end_ns) for p in paint(0, 100, ways[1].base, ways[1].overlays)]
    expected = [("propagation", 0, 20), ("compute", 20, 70), ("server", 70, 80), ("propagation", 80, 90)]
    assert pieces == [*expected, ("server", 90, 100)]


ADDRESSES = {"server": "10.0.0.1", "edge": "10.0.0.2", "a": "10.0.0.3", "b": "10.0.0.4"}


def bursts(
    sender: str, receiver: str, sent: tuple[int, int], arrived: tuple[int, int], seq: int
) -> list[Any]:
    """One message at both ends, without sidecars: (pod, direction, first, last)."""
    blank = dict.fromkeys(Burst._fields, 0)
    return [
        Burst(
            **blank
            | {
                "pod": pod,
                "hook": Hook.ETH,
                "direction": direction,
                "bytes": 9_000,
                "packets": 7,
                "first_ns": first_ns,
                "last_ns": last_ns,
                "first_seq": seq,
                "end_seq": seq + 9_000,
            }
        )
        for pod, direction, (first_ns, last_ns) in (
            (sender, Direction.TX, sent),
            (receiver, Direction.RX, arrived),
        )
    ]


def hierarchy(*, answered: bool = True) -> tuple[dict[str, Any], KernelEvents]:
    """A round of a server, an edge and its two clients; 5 ns a way, 2 ns a message."""
    events = KernelEvents()

    def say(sender: str, receiver: str, at_ns: int, seq: int) -> None:
        up = sender in ("a", "b") or receiver == "server"
        ends = [Endpoint(ADDRESSES[sender], 4000), Endpoint(ADDRESSES[receiver], 7000)]
        if not up:
            ends = [Endpoint(ADDRESSES[sender], 7000), Endpoint(ADDRESSES[receiver], 4000)]
        wire = wire_between(*ends)
        for one in bursts(sender, receiver, (at_ns, at_ns + 2), (at_ns + 5, at_ns + 7), seq):
            place = events.bursts.setdefault((one.pod, Hook.ETH, wire), {})
            place.setdefault(one.direction, []).append(one)

    say("server", "edge", 10, 0)  # there at 17
    say("edge", "a", 20, 0)  # there at 27
    say("edge", "b", 22, 0)  # there at 29
    say("a", "edge", 40, 0)  # there at 47
    if answered:
        say("b", "edge", 60, 0)  # there at 67
    say("edge", "server", 70, 0)  # there at 77
    names = ("pod", "container", "address", "port", "reachable")
    doors = [dict(zip(names, (pod, "app", "0.0.0.0", 7000, True), strict=True)) for pod in ("server", "edge")]
    meta = {
        "pods": [{"name": name, "address": address} for name, address in ADDRESSES.items()],
        "topology": {
            "rounds_of": "server",
            "pods": list(ADDRESSES),
            "endpoints": doors,
            "connections": [],
            "serves": {"server": ["edge"], "edge": ["a", "b"]},
            "behind_sidecar": {},
        },
    }
    return meta, events


def test_a_round_over_two_levels() -> None:
    level, edges = levels_of(*hierarchy())
    assert level.topology.clients == ("edge",)
    assert {name: one.topology.clients for name, one in edges.items()} == {"edge": ("a", "b")}
    top = level.chain("edge", (0, 100), open_ended=True)
    assert top.turnaround == (17, 70)
    first, last = ways_of(top, level, edges, (0, 100), {})
    assert [way.client for way in (first, last)] == ["a", "b"]
    assert (first.arrival_ns, last.arrival_ns, last.behind_ns(first)) == (77, 77, 20)
    pieces = [(p.component, p.start_ns, p.end_ns) for p in paint(0, 100, last.base, last.overlays)]
    assert pieces == [
        ("server", 0, 10),
        ("propagation", 10, 15),
        ("transmission", 15, 17),
        ("server", 17, 22),
        ("propagation", 22, 27),
        ("transmission", 27, 29),
        ("compute", 29, 60),
        ("propagation", 60, 65),
        ("transmission", 65, 67),
        ("server", 67, 70),
        ("propagation", 70, 75),
        ("transmission", 75, 77),
        ("server", 77, 100),
    ]


def test_a_client_of_an_edge_that_never_answers() -> None:
    level, edges = levels_of(*hierarchy(answered=False))
    top = level.chain("edge", (0, 100), open_ended=True)
    _, missing = ways_of(top, level, edges, (0, 100), {"b": True})
    assert missing.arrival_ns is None
    pieces = {(p.component, p.start_ns, p.end_ns) for p in paint(0, 100, missing.base, missing.overlays)}
    assert ("compute", 29, 70) in pieces


def test_whom_others_connect_to_without_a_model_is_no_edge() -> None:
    meta, events = hierarchy()
    meta["topology"]["serves"] = {"server": ["edge"], "edge": ["other"]}
    meta["pods"].append({"name": "other", "address": "10.0.0.9"})
    level, edges = levels_of(meta, events)
    assert (edges, level.topology.aggregators) == ({}, frozenset())
    assert level.chain("edge", (0, 100), open_ended=True).compute == (17, 70)
