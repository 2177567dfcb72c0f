"""An agent in a process of its own, and the one interface to it.

``python -m ztprobe.agent.remote SOCKET BATCHES STATE [OPTION]...`` hosts a `NodeAgent` and answers calls
(`ztprobe.agent.calls`) on the socket that it was given, one JSON object a line. It loads its probes at once,
while whoever started it brings up pods, and ends when the socket is closed on the other side, having undone
everything: so it does not outlive whom it works for, however that ends.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztprobe.agent.calls import CALLS, Caller, answer_of, answered
from ztprobe.agent.lease_calls import LEASE_CALLS, LeaseCaller
from ztprobe.agent.node_view_calls import NODE_VIEW_CALLS, NodeViewCaller
from ztprobe.agent.pod_access_calls import POD_ACCESS
from ztprobe.errors import ZtprobeError
from ztprobe.paths import REPO_DIR
from ztprobe.process.interrupts import shielded

if TYPE_CHECKING:
    from ztprobe.agent.interface import Leases
    from ztprobe.agent.pod_access_host import PodAccessHost
    from ztprobe.pods.model import Pod

__all__ = ("AgentProcess",)

_END_S = 10.0


class AgentProcess(Caller, LeaseCaller, NodeViewCaller):
    """`ztprobe.agent.interface.Agent`, `Leases` and `NodeView` in a process of its own; a context manager.

    :param batches: directory for its events (`ztprobe.rundir.batches`), to be made.
    :param state_dir: where a delay line keeps its configuration and counters.
    :param log: where it writes what goes wrong.
    :param probes: False: see nothing, only emulate.
    :param attached: of a deployment that ran already: see turns and process starts besides.
    :param placed_only: leases on pods that it has placed, and on no others.
    :param spool_bytes: `batches` is a queue (`ztprobe.agent.spool`) that holds no more than this.
    """

    def __init__(
        self,
        batches: Path,
        state_dir: Path,
        log: Path,
        *,
        probes: bool = True,
        attached: bool = False,
        placed_only: bool = False,
        spool_bytes: int | None = None,
    ) -> None:
        self._log = log
        ours, theirs = socket.socketpair()
        command = [
            sys.executable,
            "-m",
            __name__,
            str(theirs.fileno()),
            str(batches.absolute()),
            str(state_dir),
        ]
        if not probes:
            command.append("--no-probes")
        if attached:
            command.append("--attached")
        if placed_only:
            command.append("--placed-only")
        if spool_bytes is not None:
            command += ["--spool", str(spool_bytes)]
        with theirs, log.open("wb") as errors_:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors_,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the command line, which ends it in order
                cwd=REPO_DIR,
            )
        self._socket = ours
        self._answers = ours.makefile("r", encoding="utf-8")

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, call: str, **arguments: Any) -> Any:
        return answer_of(self.carry({"call": call, **arguments}), f"see {self._log}")

    def carry(self, said: dict[str, Any]) -> dict[str, Any]:
        """Make a call that is JSON already. :raises ZtprobeError: the process has ended."""
        try:
            self._socket.sendall((json.dumps(said) + "\n").encode())
            line = self._answers.readline()
        except OSError:
            line = ""
        if not line:
            raise ZtprobeError(f"the agent has ended before its time (see {self._log})")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """See `Agent`."""
        with shielded():
            self._answers.close()
            self._socket.close()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class _PodCalls:
    """A run's access to its pods; what that needs is loaded when one asks."""

    def __init__(self, placed: Mapping[str, Pod]) -> None:
        self._placed = placed
        self._host: PodAccessHost | None = None

    def answer(self, said: Mapping[str, Any]) -> Any:
        """Make one."""
        from ztprobe.agent.pod_access_host import POD_ACCESS_CALLS, PodAccessHost

        if self._host is None:
            self._host = PodAccessHost(self._placed)
        return POD_ACCESS_CALLS[said["call"]](self._host, said)


def main() -> int:
    """Host an agent until the socket closes."""
    # Whoever only starts one needs none of this.
    import pyarrow

    from ztprobe.agent.memory import hold_little
    from ztprobe.agent.node_agent import NodeAgent
    from ztprobe.agent.node_leases import NodeLeases
    from ztprobe.agent.node_view import ThisNode
    from ztprobe.agent.placed_leases import PlacedLeases
    from ztprobe.agent.sinks import RunDirSink, Sink
    from ztprobe.agent.spool_sink import SpoolSink
    from ztprobe.rundir.batches import BatchWriter

    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=int)
    parser.add_argument("batches", type=Path)
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("--no-probes", action="store_true")
    parser.add_argument("--attached", action="store_true")
    parser.add_argument("--placed-only", action="store_true")
    parser.add_argument("--spool", type=int)
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hold_little()
    # Arrow's own allocator keeps what it has once had; the system's gives it back.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    sink: Sink = (
        RunDirSink(BatchWriter(given.batches))
        if given.spool is None
        else SpoolSink(given.batches, given.spool)
    )
    with (
        socket.socket(fileno=given.socket) as connection,
        NodeAgent(
            sink,
            state_dir=given.state_dir,
            probes=not given.no_probes,
            attached=given.attached,
            counted=given.spool is not None,  # for a service, which others may ask
        ) as agent,
    ):
        prepared = answered(agent.prepare)
        view = ThisNode(agent, service=None if given.spool is None else os.getppid())
        pods = _PodCalls(view.placed)
        leases: Leases = NodeLeases()
        if given.placed_only:
            leases = PlacedLeases(leases, view.placed)
        for line in connection.makefile("r", encoding="utf-8"):
            said = json.loads(line)
            if said["call"] == "prepare":
                reply = prepared
            elif (lease_call := LEASE_CALLS.get(said["call"])) is not None:
                reply = answered(lambda call=lease_call, said=said: call(leases, said))  # type: ignore[misc]
            elif said["call"] in POD_ACCESS:
                reply = answered(lambda said=said: pods.answer(said))  # type: ignore[misc]
            elif (view_call := NODE_VIEW_CALLS.get(said["call"])) is not None:
                reply = answered(lambda call=view_call, said=said: call(view, said))  # type: ignore[misc]
            else:
                reply = answered(lambda call=CALLS[said["call"]], said=said: call(agent, said))  # type: ignore[misc]
            connection.sendall((json.dumps(reply) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
