"""A trace through agents: from the first look to a run directory that is whole or not there."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ztprobe.agent.service.client import Connection
from ztprobe.attach.nodes.observation import Observation
from ztprobe.attach.nodes.record import run_of
from ztprobe.attach.nodes.request import NodesRequest
from ztprobe.errors import UsageError, ZtprobeError
from ztprobe.process.interrupts import Interrupted, shielded
from ztprobe.progress import Progress
from ztprobe.rundir import files, temporary
from ztprobe.rundir.store import Run, create_run_dir

__all__ = ("observed", "tell_run", "trace_nodes")

_POLL_S = 0.25
_TELL_S = 5.0


def trace_nodes(request: NodesRequest, out: Path, progress: Progress) -> Path:
    """Trace what runs on a cluster's nodes into ``out``, until it is over or Ctrl-C.

    :raises UsageError: labels mean nobody.
    :raises ZtprobeError: it cannot be watched, or no more; what was seen until then is in ``out``.
    """
    failure: ZtprobeError | None = None
    with observed(request, progress) as seen:
        progress.stage("rounds", f"from {seen.told_by}")
        try:
            progress.done(_watch(seen, progress))
        except Interrupted as signal:
            progress.done(f"ended by {signal}")
        except UsageError:
            raise
        except ZtprobeError as error:
            failure = error
        with shielded():
            ended_early = seen.stop()
            failure = failure or ended_early
            _write(run_of(seen, failure=failure), out)
    if failure is not None:
        raise type(failure)(f"{failure}; what was seen until then is in {out}") from failure
    return out


@contextlib.contextmanager
def observed(request: NodesRequest, progress: Progress) -> Iterator[Observation]:
    """An observation that has begun."""
    with temporary.scratch() as directory, Observation(request, directory, progress.note) as seen:
        progress.stage("participants")
        seen.begin()
        others = len(seen.ever) - 1
        progress.done(
            f"{seen.pods.server.name} on {seen.pods.server.node}, {others} other{'' if others == 1 else 's'}"
        )
        progress.stage("probes")
        hooks = seen.server_node.hooks
        progress.done(f"{len(hooks)} signals attached on {', '.join(node.name for node in seen.in_order)}")
        yield seen


def _watch(seen: Observation, progress: Progress) -> str:
    """Until something ends it; says what."""
    request, begun_s, ended = seen.request, time.monotonic(), 0
    while True:
        with shielded():  # an answer that is not read would be the next question's
            for number, duration_s in seen.look():
                ended += 1
                wanted = max(request.rounds or 0, ended)
                seen.server_node.tell_round(duration_s)
                progress.round_done(ended, wanted, duration_s, f"the server's round {number}")
        if request.rounds is not None and ended >= request.rounds:
            return f"{request.rounds} rounds have ended"
        if request.for_s is not None and time.monotonic() - begun_s >= request.for_s:
            return "the time is over"
        if seen.pods.server_is_over:
            return "the server has ended"
        time.sleep(_POLL_S)


def tell_run(request: NodesRequest, directory: Path, figures: dict[str, Any]) -> None:
    """Have the figures of a run that has been analysed shown by the agent of its server's node.

    :raises ZtprobeError: it does not take them.
    """
    meta = json.loads((directory / "run.json").read_text())
    server_node = meta["nodes"][0]["name"]
    for one in request.agents:
        with contextlib.closing(Connection(one.address, request.tls, patience_s=_TELL_S)) as connection:
            if (one.node or connection.status().get("node")) == server_node:
                connection.tell_run(figures)


def _write(run: Run, out: Path) -> None:
    """:raises RunDirError: the disk refuses."""
    partial = files.unguessable(out, "partial")
    with files.opened_directory(out.parent, make=0o777):
        files.make_directory(partial, 0o700)
    try:
        target = create_run_dir(partial, shown=out)
        target.append_jsonl("rounds.jsonl", *run.rounds)
        for name, table in run.events.items():
            target.write_events(name, table)
        for log in run.path.glob("*.log"):
            files.write_whole(partial / "logs" / log.name, log.read_bytes(), mode=0o600)
        # Tuples become lists, as they will be read back; what is no number must not cost a finished run.
        target.finish(json.loads(json.dumps(run.meta), parse_constant=lambda _name: None))
        files.publish(partial, out)
    finally:
        files.remove_tree(partial)
