"""Recorded rounds again with components removed or rescaled: who is critical then, and how long rounds take.

Every client's way is changed edge by edge, trainings share the CPUs anew, and a round ends a tail after the
last update. Without a change the recorded rounds come out again. What a change does to an edge:

- *mtls*: TLS handshakes and what sidecars took are gone (they are the path's only proxies).
- *policy*: what it dropped is gone.
- *profile*: segments travel for as long as the new path takes, with no jitter and nothing lost; waiting for
  windows follows from the round trip and the bytes (`analysis.whatif.transport`); what the sender's socket
  put down to rate or queues stays. A handshake keeps what it took beyond its round trip, and questions for
  names what they took beyond their way there, one after another, as many as were seen.
- *reconnect*: what setting up this run's connections cost comes before every update; its window starts anew,
  and so does that of the model that comes over the same connection after it. On the same path both take what
  some client's took in the run's first round, when its connections were new; whose is drawn for each.
- *congestion control*: waiting for windows follows from the new one's rules.

The interval is over rounds (the run's own, `statistics.mean_interval`): how another run would differ is not
in it. What rests on the first round's messages has none.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis import statistics
from analysis.ledger.model import COMPONENTS
from analysis.whatif.change import WhatIfChange
from analysis.whatif.graph import ClientWay, MessageWay, RoundWay, RunWay
from analysis.whatif.processors import ends_of, work_of
from analysis.whatif.refusals import refuse_untold
from analysis.whatif.transport import window_wait_ns

__all__ = ("Prediction", "Replayed", "predict", "replay")

# Each takes one round trip; TLS 1.3 and HTTP/2's settings as well.
_ONE_ROUND_TRIP = ("tcp_handshake", "tls_handshake", "http2_setup")
_TURNS = 6
_SET_UP = ("dns", "tcp_handshake", "tls_handshake", "http2_setup", "proxy")


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One round as it would have been."""

    round: int
    duration_ns: int
    critical_client: str
    components_ns: dict[str, int]  # of the critical client's way, and "residual"; they are the duration


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A run as it would have been; seconds, means over rounds."""

    rounds: tuple[Replayed, ...]
    mean_s: float
    interval_s: tuple[float, float] | None
    rests_on_first: bool  # its messages are those of the first round, and nothing says how such ones vary
    components_s: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "rounds": len(self.rounds),
            "rests_on_first": self.rests_on_first,
            "mean_s": round(self.mean_s, 9),
            "ci95": None if self.interval_s is None else [round(edge, 9) for edge in self.interval_s],
            "components": {name: round(value, 9) for name, value in self.components_s.items()},
            "critical_clients": dict(
                sorted(
                    (client, sum(one.critical_client == client for one in self.rounds))
                    for client in {one.critical_client for one in self.rounds}
                )
            ),
        }


def predict(run: RunWay, change: WhatIfChange) -> Prediction:
    """What rounds of this run would take on average after a change.

    :raises UsageError: the run has nothing of what is to be taken away, or cannot tell.
    """
    rounds = tuple(replay(run, change))
    durations_ns = np.array([one.duration_ns for one in rounds], dtype=np.int64)
    of_first = _rests_on_first(run, change)
    interval_ns = None if of_first else statistics.mean_interval(durations_ns)
    return Prediction(
        rounds=rounds,
        mean_s=float(durations_ns.mean()) / 1e9,
        rests_on_first=of_first,
        interval_s=None if interval_ns is None else (interval_ns[0] / 1e9, interval_ns[1] / 1e9),
        components_s={
            name: sum(one.components_ns[name] for one in rounds) / len(rounds) / 1e9
            for name in (*COMPONENTS, "residual")
        },
    )


def _rests_on_first(run: RunWay, change: WhatIfChange) -> bool:
    """New connections on the same path, by the same rules, whose like the first round had."""
    same = change.one_way_ns is None and change.congestion_control is None
    return change.reconnect and same and bool(run.first)


def replay(run: RunWay, change: WhatIfChange) -> list[Replayed]:
    """Every round of a run after a change. :raises UsageError: see `predict`."""
    refuse_untold(run, change)
    one_way_ns = run.one_way_ns
    return [_replay_round(one, run, change, one_way_ns) for one in run.rounds]


def _replay_round(
    one: RoundWay, run: RunWay, change: WhatIfChange, one_way_ns: Mapping[str, tuple[int, int]]
) -> Replayed:
    spans = [(way.ready_ns, way.ready_ns + way.at_client_ns["compute"]) for way in one.clients]
    work_ns = work_of(spans, run.cpus)
    drawn = random.Random(one.round)
    changed = [
        _changed(way, run, change, *one_way_ns[way.client], new=_drawn_as_new(run, change, drawn))
        for way in one.clients
    ]
    starts_ns = [way.ready_ns for way in changed]
    ends_ns = ends_of(starts_ns, work_ns, run.cpus)
    arrivals: list[tuple[int, ClientWay]] = []
    for way, end_ns in zip(changed, ends_ns, strict=True):
        at_client_ns = way.at_client_ns | {"compute": round(end_ns) - way.ready_ns}
        trained = ClientWay(
            client=way.client, before_ns=way.before_ns, down=way.down, at_client_ns=at_client_ns, up=way.up
        )
        arrivals.append((trained.arrival_ns, trained))
    latest_ns, critical = max(arrivals, key=lambda arrival: arrival[0])
    components_ns = {
        name: critical.down.components_ns[name]
        + critical.at_client_ns[name]
        + critical.up.components_ns[name]
        for name in (*COMPONENTS, "residual")
    }
    components_ns["server"] += critical.before_ns + one.tail_ns
    return Replayed(
        round=one.round,
        duration_ns=latest_ns + one.tail_ns,
        critical_client=critical.client,
        components_ns=components_ns,
    )


def _drawn_as_new(
    run: RunWay, change: WhatIfChange, drawn: random.Random
) -> tuple[MessageWay, MessageWay] | None:
    """A message of each direction as it was when connections were new; None: the rules have to tell."""
    if not _rests_on_first(run, change):
        return None
    return drawn.choice(run.first).down, drawn.choice(run.first).up


def _changed(
    way: ClientWay,
    run: RunWay,
    change: WhatIfChange,
    was_down_ns: int,
    was_up_ns: int,
    *,
    new: tuple[MessageWay, MessageWay] | None,
) -> ClientWay:
    """A client's edges after the change, but for how long it trains.

    :param was_down_ns: a first segment's way to it, and ``was_up_ns`` from it.
    :param new: its messages are to take what these took; None: what the rules say.
    """
    round_trip_ns = was_down_ns + was_up_ns
    at_client_ns = dict(way.at_client_ns)
    if change.reconnect:
        for name in _SET_UP:
            at_client_ns[name] += run.setup_ns.get(name, 0)
    if "mtls" in change.without:
        at_client_ns |= {"proxy": 0, "tls_handshake": 0}
    if "policy" in change.without:
        at_client_ns["policy_drop"] = 0
    one_way_ns = change.one_way_ns
    if one_way_ns is not None:
        for name in _ONE_ROUND_TRIP:
            if at_client_ns[name]:
                at_client_ns[name] = max(0, at_client_ns[name] - round_trip_ns) + 2 * one_way_ns
        if at_client_ns["dns"]:
            # Profiles are the deployment's own: a question travels by them, its answer does not.
            questions = max(1, run.questions)
            beyond_ns = max(0, at_client_ns["dns"] - questions * was_up_ns)
            at_client_ns["dns"] = beyond_ns + questions * one_way_ns
    at_client_total_ns, before_ns = sum(at_client_ns.values()), sum(way.at_client_ns.values())
    was_down_idle_ns, was_up_idle_ns = before_ns + way.up.total_ns, before_ns + way.down.total_ns
    down, up = way.down, way.up
    new_down, new_up = new or (None, None)
    for _ in range(_TURNS):  # how long one direction is idle depends on how long the other takes
        down_idle_ns, up_idle_ns = at_client_total_ns + up.total_ns, at_client_total_ns + down.total_ns
        down = _message(way.down, new_down, run, change, round_trip_ns, was_down_idle_ns, down_idle_ns)
        up = _message(way.up, new_up, run, change, round_trip_ns, was_up_idle_ns, up_idle_ns)
    return ClientWay(client=way.client, before_ns=way.before_ns, down=down, at_client_ns=at_client_ns, up=up)


def _message(
    message: MessageWay,
    new: MessageWay | None,
    run: RunWay,
    change: WhatIfChange,
    round_trip_ns: int,
    was_idle_ns: int,
    now_idle_ns: int,
) -> MessageWay:
    """:param new: it is to take what this one took; None: what the rules say.
    :param was_idle_ns: its connection, in the recorded round, before it."""
    after = dict(message.components_ns)
    if "mtls" in change.without:
        after["proxy"] = 0
    if "policy" in change.without:
        after["policy_drop"] = 0
    one_way_ns = change.one_way_ns
    window_ns, jitter_ns = message.window_ns, message.jitter_ns
    # With a connection for each round, its client sends the update on it first, and the server the model
    # after that: neither has sent on it before.
    was_new, is_new = run.reconnect, run.reconnect or change.reconnect
    control = change.congestion_control or run.congestion_control

    def wait_ns(trip_ns: int, new_connection: bool, idle_ns: int = now_idle_ns) -> int:
        return window_wait_ns(
            message.bytes,
            trip_ns,
            idle_ns=idle_ns,
            congestion_control=control,
            new_connection=new_connection,
            offloads=run.offloads,
        )

    if one_way_ns is not None:
        after["propagation"], after["retransmission"], jitter_ns = one_way_ns, 0, 0
        window_ns = wait_ns(2 * one_way_ns, is_new)
    elif change.congestion_control is not None:
        window_ns = wait_ns(round_trip_ns, is_new)
    elif new is not None:
        moved = ("transmission", "retransmission")
        as_new = after | {name: new.components_ns[name] for name in moved}
        return replace(message, components_ns=as_new, window_ns=new.window_ns, jitter_ns=new.jitter_ns)
    elif is_new != was_new:
        more_ns = wait_ns(round_trip_ns, is_new) - wait_ns(round_trip_ns, was_new, was_idle_ns)
        window_ns = max(0, window_ns + more_ns)
    after["transmission"] += window_ns - message.window_ns + jitter_ns - message.jitter_ns
    return replace(
        message,
        components_ns=after,
        window_ns=window_ns,
        jitter_ns=jitter_ns,
        one_way_ns=message.one_way_ns if one_way_ns is None else one_way_ns,
    )
