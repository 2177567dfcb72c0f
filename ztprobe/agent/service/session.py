"""One collector's use of the agent: a process with probes, and the queue of what it saw.

A session outlives a collector that is away for a while, and what it has queued outlives the service: the
next one on this node delivers it. Probes and profiles do not: they end with the service, and a session
that it left says so instead of going on with a gap.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ztprobe.agent.calls import answer_of
from ztprobe.agent.counts import Counts, added
from ztprobe.agent.lease_calls import LEASE_CALLS
from ztprobe.agent.memory import held
from ztprobe.agent.remote import AgentProcess
from ztprobe.agent.spool import Spool
from ztprobe.errors import EnforcementError, PreflightError, UsageError, ZtprobeError
from ztprobe.pods.model import Pod
from ztprobe.process.identity import ProcessIdentity, started_ticks
from ztprobe.rundir import files

__all__ = ("BESIDE_CALLS", "GIVEN_UP_S", "Session", "Sessions")

_FILE, _SHAPED_FILE = "session.json", "shaped.json"
_TALLY_S = 1.0
_SILENT_S = 15  # collectors ask every second
# A collector waits for an agent for a minute (`ztprobe.agent.service.client`) and gives its run up then.
GIVEN_UP_S = 90
_MOST_LEFT = 8  # sessions of earlier services
_MOST_BESIDE = 4
_BESIDE_ORPHAN_S = 120.0  # it waits for other nodes at most
# What a session for leases may ask for: leases on pods that it has placed, and what they get of them.
BESIDE_CALLS = frozenset(
    (*LEASE_CALLS, *("place", "clock", "open_ends", "probe_path", "load_path", "close_ends"))
)


class Session:
    """See the module; made by `Sessions`."""

    def __init__(self, directory: Path, said: dict[str, Any], agent: AgentProcess | None) -> None:
        self.token = directory.name
        self.run = str(said["run"])
        self.opened_unix_s = float(said["opened_unix_s"])
        self.spool = Spool(directory / "queue")
        self.directory = directory
        self.agent = agent
        self.is_beside = bool(said.get("beside", False))  # for leases: others may watch meanwhile
        self._given: dict[str, dict[str, Any]] = {}  # pods, as they were given
        self.told: Counts = {}  # what it had seen when it was asked last
        self.profile: str | None = None
        self.stream = 0  # the newest one's number: an older one ends
        self._process = ProcessIdentity(**said["process"])
        self._calling = threading.Lock()
        self._number, self._reply = -1, {"error": "ZtprobeError", "message": "no call yet"}
        self._seen_s = time.monotonic()

    def touch(self) -> None:
        """The collector is there."""
        self._seen_s = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Since the collector was last there."""
        return time.monotonic() - self._seen_s

    @property
    def is_given_up(self) -> bool:
        """Whether it has an agent, and its collector waits no longer for that."""
        return self.agent is not None and self.silent_s > GIVEN_UP_S and not self._calling.locked()

    @property
    def is_writing(self) -> bool:
        """Whether more may come into the queue."""
        return self._process.alive

    def call(self, number: int, said: dict[str, Any]) -> dict[str, Any]:
        """Make a call of the agent, once: who asks again with the same number gets the same answer."""
        with self._calling:
            self.touch()
            if number == self._number:
                return self._reply
            self._reply = self._made(said)
            self._number = number
            self.touch()
            return self._reply

    def _made(self, said: dict[str, Any]) -> dict[str, Any]:
        if self.is_beside and said["call"] not in BESIDE_CALLS:
            return {"error": UsageError.__name__, "message": f"{said['call']}: not in a session for leases"}
        if self.agent is None:
            if said["call"] == "status":
                return {"answer": {"problem": self.lapsed, "notes": []}}
            return {"error": EnforcementError.__name__, "message": self.lapsed}
        if said["call"] == "apply":  # written down first: whoever comes after us takes it off
            shaped = json.dumps(list(self._given.values())).encode()
            files.write_whole(self.directory / _SHAPED_FILE, shaped, mode=0o600)
        try:
            reply = self.agent.carry(said)
        except ZtprobeError as error:
            return {"error": type(error).__name__, "message": str(error)}
        if "error" not in reply:
            pod = said.get("pod", {})
            if said["call"] == "add_pod":
                self._given[pod["name"]] = pod
            elif said["call"] == "remove_pod":
                self._given.pop(pod["name"], None)
            elif said["call"] == "apply":
                self.profile = str(said["profile"].get("name"))
            elif said["call"] == "stop":
                self.profile = None
                self._ask_tally()  # all that it will ever see
        return reply

    def tally(self) -> Counts:
        """What it has seen so far, counted; while another call takes long, what it said last."""
        if self._calling.acquire(timeout=_TALLY_S):
            try:
                self._ask_tally()
            finally:
                self._calling.release()
        return self.told

    def _ask_tally(self) -> None:
        if self.agent is not None:
            with contextlib.suppress(ZtprobeError):  # it has ended, and its collector's next call says so
                self.told = dict(answer_of(self.agent.carry({"call": "tally"}), self.run))

    @property
    def lapsed(self) -> str:
        """Why it cannot go on."""
        return (
            "the agent has ended unexpectedly and was started again: what happened since then was not seen,"
            " and no profile is in force any more"
        )

    def take_off(self) -> list[str]:
        """Undo what an agent that was killed left on pods. :returns: their names."""
        try:
            shaped = json.loads((self.directory / _SHAPED_FILE).read_text())
            (self.directory / _SHAPED_FILE).unlink()
        except (OSError, ValueError):
            return []
        from ztprobe.agent.emulator import take_off  # which needs netlink, that a service does without

        return take_off([Pod.from_dict(pod) for pod in shaped])

    def end(self, *, keep_queue: bool) -> None:
        """End the probes and take a profile off; idempotent."""
        if self.agent is not None:
            self.agent.close()
            self.agent = None
        if not keep_queue or not self.spool.segments():
            files.remove_tree(self.directory)

    def as_dict(self) -> dict[str, Any]:
        """For `ztprobe agent status`."""
        found: dict[str, Any] = {
            "run": self.run,
            "opened_unix_s": self.opened_unix_s,
            "silent_s": round(self.silent_s, 1),
            "watching": self.agent is not None,
            "pods": sorted(f"{pod['namespace']}/{pod['name']}" for pod in list(self._given.values())),
            "profile": self.profile,
            "queue": self.spool.queued(),
            "memory": None,
        }
        if self.agent is not None:
            with contextlib.suppress(OSError):
                found["memory"] = held(Path(f"/proc/{self.agent.pid}"))
        return found


def _how_long(session: Session) -> str:
    since = time.strftime("%H:%M:%S UTC", time.gmtime(session.opened_unix_s))
    silent_s = round(session.silent_s)
    if silent_s < _SILENT_S:
        return f"since {since}: wait until that has ended"
    return (
        f"since {since}, whose collector has not been heard for {silent_s} s: another may take its place"
        f" in {max(1, GIVEN_UP_S - silent_s)} s"
    )


class Sessions:
    """All of a service's, below one directory.

    :param orphan_s: a session without a collector for so long is ended, and what it queued is given up.
    :raises PreflightError: the directory cannot be made, or somebody else could replace what is in it.
    :raises ZtprobeError: another service uses it.
    """

    def __init__(self, root: Path, *, queue_bytes: int, orphan_s: float) -> None:
        self._root = root
        self._queue_bytes = queue_bytes
        self._orphan_s = orphan_s
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self.found: list[str] = []  # what an earlier service left and is undone now, a line each
        self.ended: dict[str, str] = {}  # token -> why; the latest ones
        self._past: Counts = {}  # what those that have ended had seen
        try:
            with contextlib.suppress(FileExistsError):
                files.make_directory(root, 0o700, parents=True)
            files.checked(root)  # what is read in it is acted on
        except OSError as error:
            raise PreflightError(f"{root}: {error.strerror}; choose another --state") from error
        self._owner = root / "service.json"
        self._take()
        self._recover()

    def _take(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            before = ProcessIdentity(**json.loads(self._owner.read_text()))
            if before.alive and before != ProcessIdentity.own():
                raise ZtprobeError(f"{self._root}: another agent (process {before.pid}) uses it")
        files.write_whole(self._owner, json.dumps(asdict(ProcessIdentity.own())).encode(), mode=0o600)

    def _recover(self) -> None:
        left = sorted(self._root.glob(f"*/{_FILE}"), key=lambda path: path.stat().st_mtime)
        for path in left[:-_MOST_LEFT]:
            files.remove_tree(path.parent)
        for path in left[-_MOST_LEFT:]:
            try:
                session = Session(path.parent, json.loads(path.read_text()), None)
            except (OSError, ValueError, KeyError, TypeError):
                files.remove_tree(path.parent)
                continue
            if session.is_beside:  # it has put nothing on pods but leases, which others end
                files.remove_tree(path.parent)
                continue
            self._sessions[session.token] = session
            if taken := session.take_off():
                self.found.append(f"a profile of run {session.run} was left on {', '.join(taken)}: taken off")

    def open(self, run: str, *, probes: bool, attached: bool = False, is_beside: bool = False) -> Session:
        """A session with an agent of its own, which begins to load its probes.

        :param attached: of a deployment that ran already.
        :param is_beside: for leases alone, which others' sessions do not hinder.
        :raises EnforcementError: the agent is at work for somebody else.
        """
        for other in self.all():
            if other.is_given_up and other.is_beside == is_beside:
                self.end(other.token, f"nobody asked for {GIVEN_UP_S} s, and run {run} took its place")
        with self._lock:
            self._refuse_more(is_beside)
            directory = self._root / secrets.token_hex(16)
            files.make_directory(directory, 0o700)
            files.make_directory(directory / "state", 0o700)
            try:
                agent = AgentProcess(
                    directory / "queue",
                    directory / "state",
                    directory / "agent.log",
                    probes=probes and not is_beside,
                    attached=attached,
                    placed_only=is_beside,
                    spool_bytes=self._queue_bytes,
                )
                identity = ProcessIdentity(pid=agent.pid, started_ticks=started_ticks(agent.pid))
                said = {"run": run, "opened_unix_s": time.time(), "process": asdict(identity)}
                said["beside"] = is_beside
                files.write_whole(directory / _FILE, json.dumps(said).encode(), mode=0o600)
            except BaseException:
                shutil.rmtree(directory, ignore_errors=True)
                raise
            session = Session(directory, said, agent)
            self._sessions[session.token] = session
            return session

    def _refuse_more(self, is_beside: bool) -> None:
        others = [one for one in self._sessions.values() if one.agent is not None]
        others = [one for one in others if one.is_beside == is_beside]
        if is_beside and len(others) >= _MOST_BESIDE:
            raise EnforcementError(f"{len(others)} others ask the agent for leases: wait until one has ended")
        if others and not is_beside:
            raise EnforcementError(f"the agent is at work for run {others[0].run} {_how_long(others[0])}")

    def get(self, token: str) -> Session:
        """:raises EnforcementError: there is none, or none any more."""
        with self._lock:
            if (session := self._sessions.get(token)) is not None:
                return session
            raise EnforcementError(self.ended.get(token, "the agent knows no such session"))

    def all(self) -> list[Session]:
        """Those that are there."""
        with self._lock:
            return list(self._sessions.values())

    def tally(self) -> Counts:
        """What the service has seen since it began, counted."""
        with self._lock:  # one that ends meanwhile is in one of them, and in one alone
            found, sessions = added({}, self._past), list(self._sessions.values())
        for session in sessions:
            added(found, session.tally())
        return found

    def end(self, token: str, why: str, *, keep_queue: bool = False) -> None:
        """End one; no error if it is none."""
        with self._lock:
            session = self._sessions.pop(token, None)
            if session is not None:
                added(self._past, session.told)  # not asked once more: it may hang, and has to be ended
                self.ended = dict(list(self.ended.items())[-_MOST_LEFT:]) | {token: why}
        if session is not None:
            session.end(keep_queue=keep_queue)

    def end_orphans(self) -> list[str]:
        """End those whose collector stays away. :returns: what was done, a line each."""
        said = []
        for session in self.all():
            most_s = min(self._orphan_s, _BESIDE_ORPHAN_S) if session.is_beside else self._orphan_s
            if session.silent_s > most_s:
                why = f"nobody asked the agent for {most_s:.0f} s, so it ended run {session.run}"
                said.append(f"{why}; {session.spool.queued()['rows']} events that nobody took are gone")
                self.end(session.token, why)
        return said

    def close(self) -> list[str]:
        """End all, and keep what nobody has taken yet for the next service here; says so, a line each."""
        said = []
        for session in self.all():
            self.end(session.token, "the agent is ending", keep_queue=True)
            if (rows := session.spool.queued()["rows"]) and session.directory.exists():
                said.append(f"{rows} events of run {session.run} wait in {session.directory}")
        self._owner.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._root.rmdir()
        return said
