"""What was seen where no round was: for whoever waited for one."""

from __future__ import annotations

from pathlib import Path

from ztprobe.errors import RunDirError
from ztprobe.events.kinds import Hook
from ztprobe.rundir.store import load_run

__all__ = ("why_no_rounds",)

_SHORT_BYTES = 8192


def why_no_rounds(directory: Path) -> str | None:
    """One line about a saved run without rounds; None: it has some, or cannot be read.

    Bytes are those of the participants' connections, counted once.
    """
    try:
        run = load_run(directory)
    except RunDirError:
        return None
    names = {event["event"] for event in run.rounds}
    if "attachment" not in run.meta or {"round_start", "round_end"} <= names:
        return None
    attachment = run.meta["attachment"]
    seconds = (attachment["detached_ns"] - attachment["attached_ns"]) / 1e9
    bursts, owners = run.events["bursts"], run.events["owners"]
    on_wire = bursts[bursts["hook"] != Hook.SOCK]
    sent = on_wire[(on_wire["hook"] == Hook.LO) | (on_wire["direction"] == "tx")]
    columns = (owners[name].tolist() for name in ("local", "local_port", "remote", "remote_port"))
    ends = {
        frozenset(((local, local_port), (remote, remote_port)))
        for local, local_port, remote, remote_port in zip(*columns, strict=True)
        if remote_port
    }
    turns = run.events.get("turns")
    short = 0
    if turns is not None and len(turns):
        lengths = (turns["end_seq"] - turns["first_seq"]) % (1 << 32)
        short = int(((turns["hook"] != Hook.SOCK) & (lengths < _SHORT_BYTES)).sum())
    return (
        f"no round was seen in {seconds:.0f} s; seen were {len(ends)} connections of "
        f"{len(attachment['participants'])} participants, {len(sent)} messages of {int(sent['bytes'].sum())} "
        f"bytes and {short} short ones (polls and heartbeats); trace longer (--for), or give the server's "
        "events (--events-from)"
    )
