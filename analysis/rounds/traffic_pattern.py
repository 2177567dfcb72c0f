"""Rounds from the pattern of the largest messages: a model out to some clients, and their updates back.

A client's *exchange* is an update and the model before it. Models that no update answers are evaluations
(Flower sends the model twice a round), clients that failed, or an app's bundle: they make no round. Exchanges
are one round if they are of different clients and overlap in time. Where a round ends and the next begins
nothing is said aloud: the boundary is put where the next round's first model leaves the server, and lies
somewhere between there and the last message before, which is its uncertainty. Idle time between rounds
belongs to none.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from analysis.rounds.messages import TrafficMessage, TrafficTransfer, messages_of
from analysis.rounds.server_side import ServerSide

__all__ = ("InferredRound", "RoundExchange", "exchanges_of", "infer_rounds")

# What lies between rounds is idle if it is longer than some seconds, and than either what usually lies there
# or what rounds take themselves.
_IDLE_NS = 10_000_000_000
_IDLE_TIMES = 5
_IDLE_ROUNDS = 2
# Before a server's first byte and behind its last it does what nobody sees (choosing clients, encoding).
_UNSEEN_NS = 25_000_000
# What a server does behind the last message (aggregation, its own evaluation) shows only in what follows.
# Where nothing does, the end is as uncertain as the longest such time, and as this at least.
_OPEN_END_NS = 500_000_000
# Of all rounds: where so many have the same clients, a client's second exchange alone tells rounds apart.
_SAME_CLIENTS_SHARE = 0.8
# A round's models go out within this share of the round; where fewer do, clients come when they like.
_AT_ONCE_SHARE = 0.2
_SENT_AT_ONCE = 0.6


@dataclass(frozen=True, kw_only=True)
class InferredRound:
    """One round; times in CLOCK_MONOTONIC nanoseconds, uncertainties to either side."""

    start_ns: int
    end_ns: int
    start_uncertainty_ns: int
    end_uncertainty_ns: int
    clients: tuple[str, ...]  # whose updates were seen
    evaluations: int  # models of this round that no update answered
    whole: bool = True  # False: the record began or ended within it


@dataclass(frozen=True)
class RoundExchange:
    """An update of a client, and the model that it answers."""

    client: str
    model: TrafficMessage
    update: TrafficMessage
    whole: bool = True  # False: the record began or ended between the two, and one of them was not seen


def infer_rounds(
    transfers: Iterable[TrafficTransfer],
    at_server: Iterable[TrafficTransfer] = (),
    *,
    also_cut_off: bool = False,
) -> list[InferredRound]:
    """The rounds that were whole within what was seen.

    :param transfers: between the clients and whatever they speak with: the server, or a hub.
    :param at_server: where that is a hub, between the server and the hub (down: towards the hub): boundaries
        are the server's own, and a hub's clients see them late.
    :param also_cut_off: those as well that the record's two ends cut off and that an exchange is seen of.
    """
    transfers = list(transfers)
    messages = messages_of(transfers)
    exchanges, unanswered = _exchanges(messages)
    cut_off = _cut_off(exchanges, messages, max((one.last_ns for one in transfers), default=0))
    groups = _rounds(sorted([*exchanges, *cut_off], key=lambda one: one.model))
    if not groups or _is_asynchronous(groups):
        return []
    server = ServerSide(at_server)
    unanswered_first = _evaluates_first(groups, unanswered)
    begun = [
        _begun_ns(group, groups[i - 1] if i else None, unanswered, unanswered_first)
        for i, group in enumerate(groups)
    ]
    starts = []
    for i, begun_ns in enumerate(begun):
        before_ns = _over_ns(groups[i - 1], messages, begun_ns) if i else None
        start_ns, floor_ns = server.refined(begun_ns, before_ns)
        starts.append((start_ns, start_ns - floor_ns if floor_ns is not None else None))
    following = [*(start_ns for start_ns, _ in starts[1:]), None]
    ends = [
        server.concluded(_over_ns(group, messages, next_ns), next_ns)
        for group, next_ns in zip(groups, following, strict=True)
    ]
    rounds = _bounded(groups, starts, ends, unanswered)
    return [one for one in rounds if one.whole or also_cut_off]


def exchanges_of(messages: Sequence[TrafficMessage]) -> list[RoundExchange]:
    """Updates with the model before each, in the order of time."""
    return _exchanges(messages)[0]


def _exchanges(messages: Sequence[TrafficMessage]) -> tuple[list[RoundExchange], list[TrafficMessage]]:
    """Pairs of a model and its update, and the models that no update answered."""
    exchanges, unanswered = [], []
    waiting: dict[str, list[TrafficMessage]] = defaultdict(list)
    for message in messages:
        models = waiting[message.client]
        if message.down:
            models.append(message)
        elif models:
            *others, model = models
            exchanges.append(RoundExchange(message.client, model, message))
            unanswered += others
            models.clear()
    unanswered += [model for models in waiting.values() for model in models]
    return sorted(exchanges, key=lambda one: one.model), sorted(unanswered)


def _cut_off(
    exchanges: Sequence[RoundExchange], messages: Sequence[TrafficMessage], end_ns: int
) -> list[RoundExchange]:
    """What the record's two ends cut off: updates without their model, and models without their update.

    They are of clients that take part later, or did before, and fall into a round that others are seen in: it
    is that round which is not whole. Who has a model for much longer than any exchange took will not answer.
    """
    if not exchanges:
        return []
    first_ns, last_ns = exchanges[0].model.first_ns, max(one.update.last_ns for one in exchanges)
    longest_ns = max(one.update.last_ns - one.model.first_ns for one in exchanges)
    first = {message.client: message for message in reversed(messages)}
    last = {message.client: message for message in messages}
    found = []
    for client in sorted({one.client for one in exchanges}):
        update, model = first[client], last[client]
        if not update.down and update.last_ns > first_ns:
            unseen = TrafficMessage(messages[0].first_ns, messages[0].first_ns, client, True, 0)
            found.append(RoundExchange(client, unseen, update, whole=False))
        if model.down and model.first_ns < last_ns and end_ns - model.first_ns < 2 * longest_ns:
            unseen = TrafficMessage(end_ns, end_ns, client, False, 0)
            found.append(RoundExchange(client, model, unseen, whole=False))
    return found


def _rounds(exchanges: Sequence[RoundExchange]) -> list[list[RoundExchange]]:
    """Exchanges in rounds.

    A client takes part once in a round. That alone tells rounds apart where they have the same clients each:
    clients that ask a hub now and then may well take part one after the other. Where a server picks clients
    anew each time, a round is also over when all of its exchanges are and another client's begins.
    """
    by_client = _split(exchanges, also_when_over=False)
    clients = {one.client for one in exchanges}
    full = sum({one.client for one in group} == clients for group in by_client)
    if full >= _SAME_CLIENTS_SHARE * len(by_client):
        return by_client
    return _split(exchanges, also_when_over=True)


def _split(exchanges: Sequence[RoundExchange], *, also_when_over: bool) -> list[list[RoundExchange]]:
    groups: list[list[RoundExchange]] = [[]]
    for one in exchanges:
        group = groups[-1]
        if any(other.client == one.client for other in group):
            cut = _cut(group, one)
            groups[-1:] = [group[:cut], group[cut:]]
        elif also_when_over and group and _is_over(group, one):
            groups.append([])
        groups[-1].append(one)
    return [group for group in groups if group]


def _cut(group: Sequence[RoundExchange], again: RoundExchange) -> int:
    """How many exchanges of a group are the round before, now that one of its clients takes part again.

    Whoever is missing from a round, or was not yet watched in it, takes part in the next before that client:
    the next round begins at the latest place where all before was over. Where rounds overlap there is none,
    and the client's second exchange is the next round's first.
    """
    earliest = 1 + next(i for i, one in enumerate(group) if one.client == again.client)
    places = [i for i in range(earliest, len(group)) if _is_over(group[:i], group[i])]
    return len(group) if not places or _is_over(group, again) else places[-1]


def _is_over(group: Sequence[RoundExchange], following: RoundExchange) -> bool:
    return all(other.update.last_ns < following.model.first_ns for other in group)


def _is_asynchronous(groups: Sequence[Sequence[RoundExchange]]) -> bool:
    """Whether clients come and go on their own: then there are no rounds, and none are made up.

    A server that waits no longer for its slowest client overlaps rounds as well, but sends to all others at
    once.
    """
    pairs = list(itertools.pairwise(groups))
    starts = [min(one.model.first_ns for one in group) for group in groups]
    overlapping = sum(
        max(one.update.last_ns for one in group) > min(one.model.first_ns for one in following)
        for group, following in pairs
    )
    if overlapping * 2 <= len(pairs):
        return False
    begun = [
        one.model.first_ns - start_ns <= _AT_ONCE_SHARE * (next_ns - start_ns)
        for (start_ns, next_ns), group in zip(itertools.pairwise(starts), groups, strict=False)
        for one in group
    ]
    return sum(begun) < _SENT_AT_ONCE * len(begun)


def _evaluates_first(groups: Sequence[Sequence[RoundExchange]], unanswered: Sequence[TrafficMessage]) -> bool:
    """Whether models that no update answers open a round rather than end it, by the record's two ends."""
    first_ns = min(one.model.first_ns for one in groups[0])
    last_ns = max(one.update.last_ns for one in groups[-1])
    before = {model.client for model in unanswered if model.first_ns < first_ns}
    after = {model.client for model in unanswered if model.first_ns > last_ns}
    return len(before) * 2 > len(groups[0]) and not after


def _begun_ns(
    group: Sequence[RoundExchange],
    before: Sequence[RoundExchange] | None,
    unanswered: Sequence[TrafficMessage],
    unanswered_first: bool,
) -> int:
    """When the first model of a round left."""
    first_ns = min(one.model.first_ns for one in group)
    if unanswered_first:
        since_ns = max(one.update.last_ns for one in before) if before else 0
        early = [model.first_ns for model in unanswered if since_ns <= model.first_ns < first_ns]
        first_ns = min(early, default=first_ns)
    return first_ns


def _over_ns(group: Sequence[RoundExchange], messages: Sequence[TrafficMessage], next_ns: int | None) -> int:
    """When the last message of a round was over, evaluations included."""
    last_ns = max(one.update.last_ns for one in group)
    inside = [
        message.last_ns
        for message in messages
        if message.first_ns > group[0].model.first_ns and (next_ns is None or message.first_ns < next_ns)
    ]
    ends = [ns for ns in inside if next_ns is None or ns <= next_ns]
    return max([last_ns if next_ns is None else min(last_ns, next_ns), *ends])


def _bounded(
    groups: Sequence[Sequence[RoundExchange]],
    starts: Sequence[tuple[int, int | None]],
    ends: Sequence[tuple[int, bool]],
    unanswered: Sequence[TrafficMessage],
) -> list[InferredRound]:
    between = [
        max(0, start_ns - over_ns) for (start_ns, _), (over_ns, _) in zip(starts[1:], ends, strict=False)
    ]
    usual_ns = int(median(between)) if between else 0
    active_ns = median(over_ns - start_ns for (start_ns, _), (over_ns, _) in zip(starts, ends, strict=True))
    longest_ns = max(_IDLE_NS, min(_IDLE_TIMES * usual_ns, int(_IDLE_ROUNDS * active_ns)))
    idle = [gap_ns > longest_ns for gap_ns in between]
    open_end_ns = max(
        [_OPEN_END_NS, *(gap_ns for gap_ns, is_idle in zip(between, idle, strict=True) if not is_idle)]
    )
    rounds = []
    for i, group in enumerate(groups):
        start_ns, known_ns = starts[i]
        if i + 1 < len(groups) and not idle[i]:
            end_ns, end_uncertainty_ns = starts[i + 1][0], starts[i + 1][1]
        else:
            end_ns, is_known = ends[i]
            end_uncertainty_ns = _UNSEEN_NS if is_known else open_end_ns
        uncertain_ns = usual_ns if known_ns is None or (i and idle[i - 1]) else known_ns
        models = [model for model in unanswered if start_ns <= model.first_ns < end_ns]
        rounds.append(
            InferredRound(
                start_ns=start_ns,
                end_ns=end_ns,
                start_uncertainty_ns=max(_UNSEEN_NS, uncertain_ns),
                end_uncertainty_ns=max(
                    _UNSEEN_NS, end_uncertainty_ns if end_uncertainty_ns is not None else usual_ns
                ),
                clients=tuple(sorted(one.client for one in group)),
                evaluations=len(models),
                whole=all(one.whole for one in group),
            )
        )
    return rounds
