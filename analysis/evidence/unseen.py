"""What was seen where no round was: for whoever waited for one."""

from __future__ import annotations

from pathlib import Path

from ztprobe.errors import RunDirError
from ztprobe.events.kinds import Hook
from ztprobe.rundir.store import load_run

__all__ = ("why_no_rounds",)


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
    bursts, connections = run.events["bursts"], run.events["connections"]
    on_wire = bursts[bursts["hook"] != Hook.SOCK]
    sent = on_wire[(on_wire["hook"] == Hook.LO) | (on_wire["direction"] == "tx")]
    ends = {
        frozenset(((row.local, row.local_port), (row.remote, row.remote_port)))
        for row in connections.itertuples(index=False)
    }
    turns = run.events.get("turns")
    polls = 0 if turns is None else int(((turns["hook"] != Hook.SOCK) & (turns["direction"] == "tx")).sum())
    return (
        f"no round was seen in {seconds:.0f} s; seen were {len(ends)} connections of "
        f"{len(attachment['participants'])} participants, {len(sent)} messages of {int(sent['bytes'].sum())} "
        f"bytes and {polls} short turns; trace longer (--for), or give the server's events (--events-from)"
    )
