"""An agent in a process of its own, and the one interface to it.

``python -m ztprobe.agent.remote SOCKET BATCHES STATE [--no-probes] [--attached]`` hosts a `NodeAgent` and
answers calls on the socket that it was given, one JSON object a line: ``{"call": NAME, ...arguments}``, then
``{"answer": ...}`` or ``{"error": CLASS, "message": TEXT}``. It loads its probes at once, while
whoever started it brings up pods, and ends when the socket is closed on the other side, having undone
everything: so it does not outlive whom it works for, however that ends.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow

from ztprobe import errors
from ztprobe.agent.interface import Account, Measurement, Status
from ztprobe.agent.node_agent import NodeAgent
from ztprobe.agent.sinks import RunDirSink
from ztprobe.errors import ZtprobeError
from ztprobe.paths import REPO_DIR
from ztprobe.pods.model import Pod
from ztprobe.pods.source import Processes
from ztprobe.process.interrupts import shielded
from ztprobe.profile.model import Profile, profile_from_dict
from ztprobe.rundir.batches import BatchWriter

__all__ = ("AgentProcess",)

_END_S = 10.0


class AgentProcess:
    """`ztprobe.agent.interface.Agent` in a process of its own; a context manager that ends it.

    :param batches: directory for its events (`ztprobe.rundir.batches`), to be made.
    :param state_dir: where a delay line keeps its configuration and counters.
    :param log: where it writes what goes wrong.
    :param probes: False: see nothing, only emulate.
    :param attached: of a deployment that ran already: see turns and process starts besides.
    """

    def __init__(
        self, batches: Path, state_dir: Path, log: Path, *, probes: bool = True, attached: bool = False
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
        with theirs, log.open("wb") as errors_:
            self._process = subprocess.Popen(
                [*command, *([] if probes else ["--no-probes"]), *(["--attached"] if attached else [])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors_,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the command line, which ends it in order
                cwd=REPO_DIR,
            )
        self._socket = ours
        self._answers = ours.makefile("r", encoding="utf-8")

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, call: str, **arguments: Any) -> Any:
        try:
            self._socket.sendall((json.dumps({"call": call, **arguments}) + "\n").encode())
            line = self._answers.readline()
        except OSError:
            line = ""
        if not line:
            raise ZtprobeError(f"the agent has ended before its time (see {self._log})")
        reply = json.loads(line)
        if "error" in reply:
            known = getattr(errors, reply["error"], None)
            if known is None:
                raise ZtprobeError(f"the agent failed: {reply['message']} (see {self._log})")
            raise known(reply["message"])
        return reply["answer"]

    def prepare(self) -> None:
        """See `Agent`."""
        self._ask("prepare")

    def add_pod(self, pod: Pod) -> None:
        """See `Agent`."""
        self._ask("add_pod", pod=pod.as_dict())

    def remove_pod(self, pod: Pod) -> None:
        """See `Agent`."""
        self._ask("remove_pod", pod=pod.as_dict())

    def watch(self, processes: Processes) -> None:
        """See `Agent`."""
        self._ask("watch", processes=[[pid, *who] for pid, who in processes.items()])

    def start(self) -> dict[str, str]:
        """See `Agent`."""
        return dict(self._ask("start"))

    def apply(self, profile: Profile, *, seed: int) -> None:
        """See `Agent`."""
        self._ask("apply", profile=dataclasses.asdict(profile), seed=seed)

    def measure(self, server: str, clients: Sequence[str]) -> Measurement:
        """See `Agent`."""
        return Measurement(**self._ask("measure", server=server, clients=list(clients)))

    def follow(self) -> None:
        """See `Agent`."""
        self._ask("follow")

    def status(self) -> Status:
        """See `Agent`."""
        return Status(**self._ask("status"))

    def topology(self) -> dict[str, Any]:
        """See `Agent`."""
        return dict(self._ask("topology"))

    def stop(self) -> Account:
        """See `Agent`."""
        return Account(**self._ask("stop"))

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


# How each call's arguments are read. Answers are dataclasses or plain.
_CALLS: Mapping[str, Callable[[NodeAgent, dict[str, Any]], Any]] = {
    "add_pod": lambda agent, said: agent.add_pod(Pod.from_dict(said["pod"])),
    "remove_pod": lambda agent, said: agent.remove_pod(Pod.from_dict(said["pod"])),
    "watch": lambda agent, said: agent.watch({pid: (pod, name) for pid, pod, name in said["processes"]}),
    "start": lambda agent, _: agent.start(),
    "apply": lambda agent, said: agent.apply(profile_from_dict(said["profile"]), seed=said["seed"]),
    "measure": lambda agent, said: agent.measure(said["server"], said["clients"]),
    "follow": lambda agent, _: agent.follow(),
    "status": lambda agent, _: agent.status(),
    "topology": lambda agent, _: agent.topology(),
    "stop": lambda agent, _: agent.stop(),
}


def _reply(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        answer = call()
    except Exception as error:
        known = isinstance(error, ZtprobeError)
        if not known:
            traceback.print_exc()
        message = str(error) if known else f"{type(error).__name__}: {error}"
        return {"error": type(error).__name__, "message": message}
    return {"answer": dataclasses.asdict(answer) if dataclasses.is_dataclass(answer) else answer}  # type: ignore[arg-type]


def main() -> int:
    """Host an agent until the socket closes."""
    number, batches, state_dir, *options = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Arrow's own allocator keeps what it has once had; the system's gives it back.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    sink = RunDirSink(BatchWriter(Path(batches)))
    with (
        socket.socket(fileno=int(number)) as connection,
        NodeAgent(
            sink,
            state_dir=Path(state_dir),
            probes="--no-probes" not in options,
            attached="--attached" in options,
        ) as agent,
    ):
        prepared = _reply(agent.prepare)
        for line in connection.makefile("r", encoding="utf-8"):
            said = json.loads(line)
            if said["call"] == "prepare":
                reply = prepared
            else:
                reply = _reply(lambda call=_CALLS[said["call"]], said=said: call(agent, said))  # type: ignore[misc]
            connection.sendall((json.dumps(reply) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
