"""The clocks of several nodes as one: every instant of a run in the monotonic time of its server's node.

Each node's events carry its own monotonic clock. Its samples tie that to its wall clock, which takes out when
the node was booted and how its clock runs (`ztprobe.rundir.clock`). Wall clocks differ by what time
synchronisation leaves, and that is bounded by packets that were seen at both ends: none arrives before it was
sent, whichever way it goes (the four timestamps of NTP, RFC 5905 section 8). The offset is the middle of what
all packets leave room for, and its uncertainty half of that room, the shortest round trip at most. Where one
offset cannot be right for all of them, the clocks drifted apart, and a line takes its place.

A client's two directions share the error with opposite signs, so it moves time between them and leaves their
sum as it is; what happens on one node alone is not touched at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.evidence.translation import untranslated
from ztprobe.events.tables import INSTANTS
from ztprobe.rundir.clock import Clock, ClockSample
from ztprobe.rundir.store import Run

__all__ = ("INSTANTS", "NODE_CLOCKS", "NodeClock", "aligned", "clock_notes", "wires_of")

NODE_CLOCKS = "node_clocks"  # in run.json as the analysis sees it
_SYN = 2
_MOST_DRIFT_PPM = 500.0  # what Linux slews a clock by at most (adjtimex(2))

_Times = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class NodeClock:
    """What was found out about one node's clock."""

    node: str
    offset_ns: int  # of its wall clock, behind the server's node's: to be added to its times
    drift_ppm: float  # 0: one offset fits all packets
    uncertainty_ns: int | None  # None: no packet was seen at both ends, so the wall clocks are believed
    packets: int  # seen at both ends


def aligned(run: Run) -> Run:
    """The run with every time in its server's node's clock; itself, where there is one node (or it is done).

    ``node_clocks`` in its run.json then says what was found.
    """
    nodes = run.meta.get("nodes", [])
    if len(nodes) < 2 or NODE_CLOCKS in run.meta:
        return run
    server = run.meta["topology"]["rounds_of"]
    reference = next((node for node in nodes if server in node["pods"]), nodes[0])
    events, clients, found = dict(run.events), list(run.clients), []
    for node in nodes:
        if node is reference:
            continue
        by_samples = _Shift.between(node, reference)
        moved = {name: _moved(table, node["pods"], by_samples) for name, table in events.items()}
        early, late = _room(moved, set(node["pods"]), set(reference["pods"]))
        by_packets = _fitted(early, late)
        found.append(
            NodeClock(
                node=node["name"],
                offset_ns=int(by_packets.at(np.array([by_packets.origin_ns]))[0]),
                drift_ppm=by_packets.slope * 1e6,
                uncertainty_ns=by_packets.uncertainty_ns,
                packets=len(early) + len(late),
            )
        )
        events = {name: _moved(table, node["pods"], by_packets) for name, table in moved.items()}
        clients = [_moved_event(event, node["pods"], (by_samples, by_packets)) for event in clients]
    told = [dataclasses.asdict(one) for one in found]
    # Of the server's node's clock, as all times are now.
    meta = run.meta | {NODE_CLOCKS: told, "clock_samples": reference["clock_samples"]}
    return dataclasses.replace(run, meta=meta, events=events, clients=clients)


@dataclass(frozen=True, kw_only=True)
class _Shift:
    """What is added to times: by knots (interpolated), or by a line."""

    knots_ns: _Times = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # when
    values_ns: _Times = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # more than `base_ns`
    base_ns: int = 0
    origin_ns: int = 0
    slope: float = 0.0
    uncertainty_ns: int | None = None

    @classmethod
    def between(cls, node: Mapping[str, Any], reference: Mapping[str, Any]) -> _Shift:
        """From a node's monotonic clock to another's, by way of their wall clocks."""
        own, other = _samples(node), Clock(_samples(reference))
        base_ns = own[0].offset_ns - other.offset_ns(own[0].time_monotonic_ns)
        knots, values = [], []
        for sample in own:
            # The other clock's offset is asked for at the same instant, by that clock.
            at_ns = sample.time_unix_ns - other.offset_ns(sample.time_monotonic_ns + base_ns)
            knots.append(sample.time_monotonic_ns)
            values.append(sample.offset_ns - other.offset_ns(at_ns) - base_ns)
        return cls(knots_ns=np.array(knots), values_ns=np.array(values), base_ns=base_ns)

    def at(self, times_ns: _Times) -> _Times:
        """How much is added to each of them."""
        beyond = np.interp(times_ns, self.knots_ns, self.values_ns) if len(self.knots_ns) else 0.0
        line = self.slope * (times_ns - self.origin_ns)
        return np.asarray(self.base_ns + np.rint(beyond + line).astype(np.int64))


def _samples(node: Mapping[str, Any]) -> list[ClockSample]:
    return sorted(
        ClockSample(time_monotonic_ns=one["time_monotonic_ns"], time_unix_ns=one["time_unix_ns"])
        for one in node["clock_samples"]
    )


def _moved(table: pd.DataFrame, pods: Sequence[str], shift: _Shift) -> pd.DataFrame:
    """The table with these pods' instants shifted."""
    columns = [name for name in INSTANTS if name in table]
    if "pod" not in table or not columns or table.empty:
        return table
    own = table["pod"].isin(pods).to_numpy()
    changed = {}
    for name in columns:
        times = table[name].to_numpy(dtype=np.int64, copy=True)
        mine = own & (times > 0)
        times[mine] += shift.at(times[mine])
        changed[name] = times
    moved = table.assign(**changed)
    moved.attrs = table.attrs
    return moved


def _moved_event(event: dict[str, Any], pods: Sequence[str], shifts: Sequence[_Shift]) -> dict[str, Any]:
    if event.get("client_id") not in pods or "time_monotonic_ns" not in event:
        return event
    at_ns = np.array([event["time_monotonic_ns"]])
    for shift in shifts:
        at_ns = at_ns + shift.at(at_ns)
    return event | {"time_monotonic_ns": int(at_ns[0])}


def _room(tables: Mapping[str, pd.DataFrame], own: set[str], others: set[str]) -> tuple[_Times, _Times]:
    """What packets leave for the offset of a node: rows of (when, bound in nanoseconds).

    :returns: lower bounds, by packets to the node, and upper bounds, by packets from it.
    """
    seen = pd.concat([_first_bytes(tables), _set_ups(tables)], ignore_index=True)
    sent = seen[seen["direction"] == "tx"].drop_duplicates(["wire", "what"])
    came = seen[seen["direction"] == "rx"].drop_duplicates(["wire", "what"])
    both = sent.merge(came, on=["wire", "what"], suffixes=("_sent", "_came"))
    to_node = both[both["pod_sent"].isin(others) & both["pod_came"].isin(own)]
    from_node = both[both["pod_sent"].isin(own) & both["pod_came"].isin(others)]
    lower = np.column_stack([to_node["at_came"], to_node["at_sent"] - to_node["at_came"]])
    upper = np.column_stack([from_node["at_sent"], from_node["at_came"] - from_node["at_sent"]])
    return lower.astype(np.int64), upper.astype(np.int64)


def _first_bytes(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Where a burst's first byte was seen on the wire."""
    bursts = tables["bursts"]
    bursts = bursts[(bursts["hook"] == "eth") & (bursts["late_packets"] == 0)]
    return _on_wires(bursts, tables, "first_ns", [f"byte {seq}" for seq in bursts["first_seq"]])


def _set_ups(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """SYNs and their answers."""
    packets = tables["packets"]
    packets = packets[(packets["kind"] == "setup") & (packets["tcp_flags"] & _SYN > 0)]
    # A SYN that was sent again may be the earlier one that arrives.
    packets = packets[~packets.duplicated(["pod", "connection", "direction", "seq"], keep=False)]
    what = [f"SYN {flags} {seq}" for flags, seq in zip(packets["tcp_flags"], packets["seq"], strict=True)]
    return _on_wires(packets, tables, "ts_ns", what)


def _on_wires(
    rows: pd.DataFrame, tables: Mapping[str, pd.DataFrame], time: str, what: Sequence[str]
) -> pd.DataFrame:
    rows = rows.assign(what=pd.Series(what, index=rows.index, dtype=object), at=rows[time])
    rows = rows.assign(wire=wires_of(rows, tables["connections"]))
    return rows.loc[rows["wire"] != "", ["wire", "what", "pod", "direction", "at"]]


def wires_of(rows: pd.DataFrame, connections: pd.DataFrame) -> list[str]:
    """A name for the connection of each row, the same at both of its ends; empty: it is not known.

    Also where a client knows its server by a Service's address.
    """
    names = {}
    for row in untranslated({"connections": connections})["connections"].itertuples(index=False):
        ends = sorted(((row.local, row.local_port), (row.remote, row.remote_port)))
        names[row.connection] = f"{ends} {row.first_seq}"
    return [names.get(connection, "") for connection in rows["connection"].tolist()]


def _fitted(lower: _Times, upper: _Times) -> _Shift:
    """One offset that all bounds leave room for, or a line."""
    if not len(lower) or not len(upper):
        return _Shift()
    least, most = int(lower[:, 1].max()), int(upper[:, 1].min())
    if least <= most:
        return _Shift(base_ns=(least + most) // 2, uncertainty_ns=(most - least + 1) // 2)
    return _line(lower, upper)


def _line(lower: _Times, upper: _Times) -> _Shift:
    """The line that keeps the greatest distance from all bounds (linear programming)."""
    from scipy import optimize  # 0.5 s to import

    origin_ns = int(min(lower[:, 0].min(), upper[:, 0].min()))
    base_ns = int(upper[0, 1])
    # value = base + a + b (t - origin); every lower bound + m <= value <= every upper bound - m
    rows = [(-1.0, -float(t - origin_ns), 1.0, -float(bound - base_ns)) for t, bound in lower.tolist()]
    rows += [(1.0, float(t - origin_ns), 1.0, float(bound - base_ns)) for t, bound in upper.tolist()]
    table = np.array(rows)
    found = optimize.linprog(
        [0.0, 0.0, -1.0],
        A_ub=table[:, :3],
        b_ub=table[:, 3],
        bounds=[(None, None), (-_MOST_DRIFT_PPM * 1e-6, _MOST_DRIFT_PPM * 1e-6), (None, None)],
    )
    a, slope, room = (float(one) for one in found.x)
    return _Shift(
        base_ns=base_ns + round(a),
        origin_ns=origin_ns,
        slope=slope,
        uncertainty_ns=max(round(abs(room)), 1),
    )


def clock_notes(run: Run) -> list[str]:
    """What a reader has to know of the nodes' clocks."""
    said = []
    for one in run.meta.get(NODE_CLOCKS, ()):
        if one["uncertainty_ns"] is None:
            said.append(
                f"No packet was seen both at {one['node']} and at the server's node: their wall clocks are"
                " taken to agree, and times between them are as good as those."
            )
            continue
        drift = f", {one['drift_ppm']:+.1f} ppm" if one["drift_ppm"] else ""
        said.append(
            f"The clock of {one['node']} is off by {-one['offset_ns'] / 1e6:+.3f} ms{drift} against the"
            f" server's node, known within ±{one['uncertainty_ns'] / 1e6:.3f} ms from"
            f" {one['packets']} packets seen at both; so much of a client's time may be in the other"
            " of its two directions."
        )
    return said
