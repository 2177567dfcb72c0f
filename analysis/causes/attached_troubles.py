"""What went wrong in a deployment that ran already, besides slow rounds: rounds that do not end, clients that
vanish or do not get through.

Nobody told how many clients there should be, and frameworks pick some of them for each round: a client that
takes no part is no trouble by itself. It is one if it was seen to end, or to be turned away.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from analysis.causes.case import Case
from analysis.causes.findings import Trouble
from analysis.evidence.values import FIN, RST, Wire
from analysis.intervals import Interval
from ztprobe.events.kinds import Direction, Hook

__all__ = ("messages_by_sender", "troubles_of_attached")

_MESSAGE_BYTES = 8192  # less is a poll, a heartbeat, a result
# A round that is still open when the trace ends did not end if it is older than its peers ever get.
_OPEN_TIMES, _OPEN_S = 2.0, 3.0
_OPEN_ALONE_S = 60.0  # where there are no peers

Rounds = Mapping[int, Mapping[str, int]]


def messages_by_sender(case: Case) -> dict[str, list[Interval]]:
    """Participant -> when it sent messages to others, from the first byte to the last."""
    found: dict[str, set[Interval]] = defaultdict(set)
    for (pod, hook, key), by_direction in case.events.bursts.items():
        if hook != Hook.ETH or not isinstance(key, Wire):
            continue
        peer = key.peer_of(case.addresses.get(pod, pod)).address
        for direction, bursts in by_direction.items():
            sender = pod if direction == Direction.TX else case.pod_of(peer)
            found[sender] |= {(one.first_ns, one.last_ns) for one in bursts if one.bytes >= _MESSAGE_BYTES}
    return {sender: sorted(sent) for sender, sent in found.items()}


def troubles_of_attached(case: Case, rounds: Rounds) -> list[Trouble]:
    """Those that only a run that was attached to can have.

    :param rounds: number -> event -> when, of those whose beginning was seen.
    """
    sent = messages_by_sender(case)
    return [*_open(case, rounds, sent), *_gone(case, rounds, sent), *_turned_away(case, sent)]


def _open(case: Case, rounds: Rounds, sent: Mapping[str, Sequence[Interval]]) -> list[Trouble]:
    number = max(rounds, default=None)
    if number is None or "round_end" in rounds[number]:
        return []
    start_ns = rounds[number]["round_start"]
    took_s = [(at["round_end"] - at["round_start"]) / 1e9 for at in rounds.values() if "round_end" in at]
    open_s = (case.until_ns - start_ns) / 1e9
    usual_s = statistics.median(took_s) if took_s else None
    long_s = _OPEN_ALONE_S if usual_s is None else max(_OPEN_TIMES * usual_s, usual_s + _OPEN_S)
    ended = [one for one in case.exits if one.pod == case.server and one.at_ns >= start_ns]
    if not ended and open_s < long_s:
        return []
    peers = "" if usual_s is None else f", and its peers took {usual_s:.1f} s"
    silent = [
        client
        for client in case.clients
        if sent.get(client) and not _spoke(sent[client], start_ns, case.until_ns)
    ]
    nothing = f"; {', '.join(silent)} had sent nothing in it" if silent else ""
    return [
        Trouble(
            kind="unfinished",
            rounds=(number,),
            from_ns=start_ns,
            to_ns=case.until_ns,
            pods=tuple(silent),
            words=f"round {number} had not ended after {open_s:.1f} s{peers}{nothing}",
        )
    ]


def _spoke(sent: Sequence[Interval], since_ns: int, until_ns: int) -> bool:
    return any(since_ns <= last_ns and first_ns < until_ns for first_ns, last_ns in sent)


def _gone(case: Case, rounds: Rounds, sent: Mapping[str, Sequence[Interval]]) -> list[Trouble]:
    found = []
    for client in case.clients:
        left_ns = _left_ns(case, client)
        if left_ns is None or not sent.get(client):
            continue
        missed = [
            number
            for number, at in rounds.items()
            if at.get("round_end", 0) > left_ns
            and not _spoke(sent[client], at["round_start"], at["round_end"])
        ]
        if missed:
            found.append(
                Trouble(
                    kind="vanished",
                    rounds=tuple(missed),
                    from_ns=left_ns,
                    to_ns=rounds[missed[-1]]["round_end"],
                    pods=(client,),
                    words=f"{client} vanished: it took no part from round {missed[0]} on",
                )
            )
    return found


def _left_ns(case: Case, client: str) -> int | None:
    """When a client's processes had ended, or its last connection was over for good."""
    ended = [one.at_ns for one in case.exits if one.pod == client]
    if ended:
        return max(ended)
    times: list[int] = []
    over: list[int] = []
    for (pod, key), packets in case.events.packets.items():
        if not isinstance(key, Wire) or client not in (key.one.address, key.other.address):
            continue
        ends = [packet.ts_ns for packet in packets if packet.tcp_flags & (FIN | RST)]
        times += [packet.ts_ns for packet in packets if pod == client and not packet.tcp_flags & (FIN | RST)]
        if ends:
            over.append(min(ends))
    if not over or any(ts_ns > max(over) for ts_ns in times):
        return None
    # Connections that were not seen to end may go on.
    open_still = {
        key
        for (_, hook, key), by_direction in case.events.bursts.items()
        if hook == Hook.ETH
        and isinstance(key, Wire)
        and client in (key.one.address, key.other.address)
        and any(burst.last_ns > max(over) for bursts in by_direction.values() for burst in bursts)
    }
    return None if open_still else max(over)


def _turned_away(case: Case, sent: Mapping[str, Sequence[Interval]]) -> list[Trouble]:
    found = []
    for client in case.clients:
        tried = [one for one in case.attempts if one.pod == client and one.target != client]
        failed = [one for one in tried if one.refused_ns is not None or len(one.syns_ns) > 1]
        if not failed or sent.get(client) or any(one.answered_ns is not None for one in tried):
            continue
        where = f"{failed[0].target}:{failed[0].port}"
        found.append(
            Trouble(
                kind="set-up",
                rounds=(0,),
                from_ns=failed[0].syns_ns[0],
                to_ns=case.until_ns,
                pods=(client,),
                words=f"{client} did not get through to {where}, {len(tried)} times",
            )
        )
    return found
