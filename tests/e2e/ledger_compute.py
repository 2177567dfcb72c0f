"""The compute of a saved run's rounds as its ledger has it: at clients, and at who makes a model of updates.

Time that the working thread was runnable and had no CPU is left out, as the ledger has it beside. That
thread is the process' first one; before training begins and after it has ended, whichever hands the model
over or the update on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from analysis.intervals import overlap_ns, total_ns, union
from ztprobe.rundir.store import Run, load_run

__all__ = ("RoundCompute", "compute_of")

Interval = tuple[int, int]


class RoundCompute(NamedTuple):
    """One round, in nanoseconds."""

    clients_ns: dict[str, int]
    server_ns: dict[str, int]  # "server", and the edge aggregator on the critical path


def compute_of(path: Path) -> list[RoundCompute]:
    """All rounds of a run, in order."""
    run = load_run(path)
    report = json.loads((path / "report.json").read_text())
    starts_ns = {e["round"]: e["time_monotonic_ns"] for e in run.rounds if e["event"] == "round_start"}
    trained = {
        (e.get("client_id"), e["round"], e["event"]): e["time_monotonic_ns"]
        for e in run.clients
        if e["event"] in ("train_start", "train_end")
    }
    found = []
    for one in report["rounds"]:
        clients_ns, server_ns = {}, {}
        for client in one["clients"]:
            pieces = _pieces(client, "compute", starts_ns[one["round"]])
            name, number = client["client"], one["round"]
            training = (trained[name, number, "train_start"], trained[name, number, "train_end"])
            clients_ns[name] = _ran_ns(run, name, pieces, training)
            if client["critical"]:
                own = _pieces(client, "server", starts_ns[one["round"]])
                for who in ("fl-server", *client.get("through", ())):
                    inside = _overlaps(own, _work(run, who, one["round"]))
                    server_ns[who.replace("fl-server", "server")] = _ran_ns(run, who, inside, None)
        found.append(RoundCompute(clients_ns, server_ns))
    return found


def _pieces(client: Mapping[str, Any], component: str, start_ns: int) -> list[Interval]:
    return [
        (start_ns + round(begin_s * 1e9), start_ns + round(end_s * 1e9))
        for name, begin_s, end_s in client["segments"]
        if name == component
    ]


def _work(run: Run, who: str, number: int) -> list[Interval]:
    """From when all had come until what follows from it was there, by the log of who waited.

    In secure aggregation between each exchange and the next, too.
    """
    events = run.rounds if who == "fl-server" else [e for e in run.clients if e.get("edge_id") == who]
    found, begin_ns = [], None
    for event in events:
        if event.get("round") != number:
            continue
        if event["event"] in ("wait_end", "exchange_end"):
            begin_ns = event["time_monotonic_ns"]
        elif event["event"] in ("exchange_start", "aggregate_end") and begin_ns is not None:
            found.append((begin_ns, event["time_monotonic_ns"]))
            begin_ns = None
    return found


def _overlaps(some: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    return union((max(a, c), min(b, d)) for a, b in some for c, d in others)


def _ran_ns(run: Run, pod: str, inside: list[Interval], training: Interval | None) -> int:
    """The intervals without waits; while it trains (None: all the time) without those of the first thread."""
    table = run.events["cpu_waits"]
    mine = table[table["process"].str.startswith(f"{pod}/") & ~table["process"].str.endswith("/proxy")]
    waits: list[Interval] = []
    for tid, of in mine.groupby("tid"):
        its = union(zip(of["since_ns"].tolist(), of["ts_ns"].tolist(), strict=True))
        if tid in mine["tgid"].values:  # the least of them it need not be: numbers begin again
            waits += its
        elif training is not None:
            waits += [(since, min(until, training[0])) for since, until in its if since < training[0]]
            waits += [(max(since, training[1]), until) for since, until in its if until > training[1]]
    return total_ns(inside) - overlap_ns(union(waits), inside)
