"""An agent's calls as JSON, for whoever makes them from outside its process.

A call is ``{"call": NAME, ...arguments}``, its answer ``{"answer": ...}`` or ``{"error": CLASS,
"message": TEXT}``. What carries them is the business of `ztprobe.agent.remote` (a process of this
machine) and `ztprobe.agent.service` (anywhere).
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ztprobe import errors
from ztprobe.agent.counts import Counts
from ztprobe.agent.interface import Account, Agent, Measurement, Status
from ztprobe.errors import ZtprobeError
from ztprobe.pods.model import Pod
from ztprobe.pods.source import Processes
from ztprobe.profile.model import Profile, profile_from_dict

__all__ = ("CALLS", "Caller", "answer_of", "answered")

# How each call's arguments are read. Answers are dataclasses or plain.
CALLS: Mapping[str, Callable[[Agent, Mapping[str, Any]], Any]] = {
    "prepare": lambda agent, _: agent.prepare(),
    "add_pod": lambda agent, said: agent.add_pod(Pod.from_dict(said["pod"])),
    "remove_pod": lambda agent, said: agent.remove_pod(Pod.from_dict(said["pod"])),
    "watch": lambda agent, said: agent.watch({pid: (pod, name) for pid, pod, name in said["processes"]}),
    "start": lambda agent, _: agent.start(),
    "apply": lambda agent, said: agent.apply(profile_from_dict(said["profile"]), seed=said["seed"]),
    "measure": lambda agent, said: agent.measure(said["server"], said["clients"]),
    "follow": lambda agent, _: agent.follow(),
    "status": lambda agent, _: agent.status(),
    "topology": lambda agent, _: agent.topology(),
    "counters": lambda agent, _: agent.counters(),
    "tally": lambda agent, _: agent.tally(),
    "stop": lambda agent, _: agent.stop(),
}


def answered(call: Callable[[], Any]) -> dict[str, Any]:
    """Make a call. :returns: its answer or its error; what is nobody's fault but ours is printed too."""
    try:
        answer = call()
    except Exception as error:
        known = isinstance(error, ZtprobeError)
        if not known:
            traceback.print_exc()
        message = str(error) if known else f"{type(error).__name__}: {error}"
        return {"error": type(error).__name__, "message": message}
    return {"answer": dataclasses.asdict(answer) if dataclasses.is_dataclass(answer) else answer}  # type: ignore[arg-type]


def answer_of(reply: Mapping[str, Any], where: str) -> Any:
    """What `answered` gave, on the other side.

    :param where: to look for more, e.g. a log.
    :raises ZtprobeError: of the class that was raised there.
    """
    if "error" not in reply:
        return reply["answer"]
    known = getattr(errors, str(reply["error"]), None)
    if known is None:
        raise ZtprobeError(f"the agent failed: {reply['message']} ({where})")
    raise known(reply["message"])


class Caller:
    """`ztprobe.agent.interface.Agent` by calls that something else carries."""

    _watched: Processes | None = None  # what it was told last

    def _ask(self, call: str, **arguments: Any) -> Any:
        """Make a call. :raises ZtprobeError: whatever it raised, or it could not be made."""
        raise NotImplementedError

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
        """See `Agent`; what it knows already is not said again."""
        if processes != self._watched:
            self._ask("watch", processes=[[pid, *who] for pid, who in processes.items()])
            self._watched = dict(processes)

    def start(self) -> dict[str, str]:
        """See `Agent`."""
        return dict(self._ask("start"))

    def apply(self, profile: Profile, *, seed: int) -> str:
        """See `Agent`."""
        return str(self._ask("apply", profile=dataclasses.asdict(profile), seed=seed))

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

    def counters(self) -> dict[str, Any]:
        """See `Agent`."""
        return dict(self._ask("counters"))

    def tally(self) -> Counts:
        """See `Agent`."""
        return dict(self._ask("tally"))

    def stop(self) -> Account:
        """See `Agent`."""
        return Account(**self._ask("stop"))
