"""A run's messages and dropped packets as DataFrames, from its events."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.node_clocks import wires_of
from analysis.ledger.ledger import windows_of
from analysis.results.drops import dropped_packets
from analysis.run_checks import checked
from ztprobe.rundir.store import Run

__all__ = ("drop_frame", "message_frame")

_MESSAGES = (
    *("round", "from_pod", "to_pod", "first_sent_s", "last_sent_s", "first_arrived_s", "last_arrived_s"),
    *("bytes", "packets"),
)
_DROPS = (
    *("round", "time_s", "pod", "source", "target", "protocol", "source_port", "target_port", "tcp_flags"),
    *("bytes", "reason", "location", "policies"),
)


def message_frame(run: Run) -> pd.DataFrame:
    """One row a burst of payload on the wire, by when it was sent: round, from_pod, to_pod, bytes, packets,
    and when its first and last byte left and came, in seconds since the first round began.

    NaN where the other end was not watched. What is smaller than 256 bytes is control, and not in it.

    :raises ztprobe.errors.RunDirError: the run is damaged.
    """
    run, _ = checked(run)
    bursts = run.events["bursts"]
    bursts = bursts[bursts["hook"] == "eth"]
    bursts = bursts.assign(wire=wires_of(bursts, run.events["connections"]))
    on = ["wire", "first_seq"]
    columns = [*on, "pod", "first_ns", "last_ns", "bytes", "packets"]
    sent, came = (
        bursts.loc[bursts["direction"] == direction, columns].drop_duplicates(on)
        for direction in ("tx", "rx")
    )
    both = sent.merge(came[[*on, "pod", "first_ns", "last_ns"]], on=on, how="left", suffixes=("", "_came"))
    both = both.sort_values("first_ns", ignore_index=True)
    windows = windows_of(run.rounds)
    origin_ns = windows[0].start_ns if windows else 0
    rounds = [
        next((w.number for w in windows if w.start_ns <= ns < w.end_ns), None) for ns in both["first_ns"]
    ]
    found = pd.DataFrame(
        {
            "round": pd.array(rounds, dtype="Int64"),
            "from_pod": both["pod"],
            "to_pod": both["pod_came"],
            "bytes": both["bytes"],
            "packets": both["packets"],
        }
    )
    for name, column in (
        ("first_sent_s", "first_ns"),
        ("last_sent_s", "last_ns"),
        ("first_arrived_s", "first_ns_came"),
        ("last_arrived_s", "last_ns_came"),
    ):
        found[name] = (both[column] - origin_ns) / 1e9
    return found[list(_MESSAGES)]


def drop_frame(run: Run) -> pd.DataFrame:
    """One row a packet that the kernel dropped: round (0: before the first), time_s since the first round
    began, pod, source, target, protocol, ports, tcp_flags, bytes of payload, reason, location, and the
    policies that deny it.

    :raises ztprobe.errors.RunDirError: the run is damaged.
    """
    run, _ = checked(run)
    windows = windows_of(run.rounds)
    origin_ns = windows[0].start_ns if windows else 0
    rows = [
        {
            "round": one.round,
            "time_s": (one.ts_ns - origin_ns) / 1e9,
            "pod": one.pod,
            "source": one.source,
            "target": one.target,
            "protocol": one.protocol,
            "source_port": one.source_port,
            "target_port": one.target_port,
            "tcp_flags": one.tcp_flags,
            "bytes": one.payload_bytes,
            "reason": one.reason,
            "location": one.location,
            "policies": ", ".join(one.policies),
        }
        for one in dropped_packets(run)
    ]
    return pd.DataFrame(rows, columns=list(_DROPS)).astype({"round": "Int64"})
