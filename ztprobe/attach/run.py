"""One trace of a deployment that runs already: find, watch, write down, let go.

Nothing of the deployment is touched. What is put on this machine is the probes, which the agent's process
holds and which end with it, however it or we end; where they are filters of clsact (before Linux 6.6), and
for what is unfinished, a journal is left for `ztprobe clean`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from ztprobe.agent import endpoints
from ztprobe.agent.interface import Account, Agent
from ztprobe.agent.machine_load import MachineLoad
from ztprobe.agent.remote import AgentProcess
from ztprobe.agent.stalls import stall_words
from ztprobe.attach.attached_stalls import AttachedStalls, participants_stalls
from ztprobe.attach.lines import Lines
from ztprobe.attach.namespaces import Namespaces
from ztprobe.attach.owner_log import OwnerLog
from ztprobe.attach.peers import Peers
from ztprobe.attach.pod_lines import PodLines, pod_lines
from ztprobe.attach.process_evidence import Evidence
from ztprobe.attach.record import RunRecord, write_run
from ztprobe.attach.request import POD_LOG, AttachRequest
from ztprobe.attach.rounds import Rounds
from ztprobe.attach.unix_log import UnixLog
from ztprobe.errors import EnforcementError, UsageError, ZtprobeError
from ztprobe.events.owners import SIDECAR
from ztprobe.experiment.record import kernel_drop_reasons, owners_of
from ztprobe.paths import STATE_DIR
from ztprobe.pods.labelled import LabelledPods, LocalLabelledPods
from ztprobe.pods.participants import Participant, Participants
from ztprobe.pods.process_table import ProcessTable, newest_pid
from ztprobe.pods.source import Processes
from ztprobe.process.interrupts import Interrupted, shielded
from ztprobe.progress import Progress
from ztprobe.rundir.batches import BATCHES_DIR
from ztprobe.rundir.clock import take_sample
from ztprobe.rundir.store import RunDir

__all__ = ("Attachment", "attach")

_POLL_S = 0.1
_LOOK_S = 0.5  # at processes and sockets; what begins and ends in between is told by its events
_LOOK_AT_LEAST_S = 1.0  # at processes where none has begun since: one may have ended, or be another program
_LOAD_S = 1.0  # between two looks at what else the machine does
_SAMPLE_S = 5.0  # of clocks, and of who serves whom


def attach(request: AttachRequest, target: RunDir, progress: Progress) -> Attachment:
    """Trace what runs into an empty run directory, until it is over or Ctrl-C.

    :returns: what there was, ready to be analysed.
    :raises UsageError: a target names nothing that could be traced.
    :raises ZtprobeError: it cannot be watched.
    """
    attachment = Attachment(request, target, progress)
    with Namespaces() as attachment.namespaces:
        attachment.run()
    return attachment


def _labelled(request: AttachRequest) -> LabelledPods:
    if (access := request.cluster) is None:
        return LocalLabelledPods()
    from ztprobe.kubernetes.labelled import ClusterLabelledPods  # and the library only where it is needed

    return ClusterLabelledPods(access.api(), access.namespace, node=access.node)


class Attachment:
    """A trace that is about to begin, goes on or has ended."""

    namespaces: Namespaces
    rounds: Rounds
    account: Account
    stalls: AttachedStalls
    _agent: Agent
    _hooks: dict[str, str]
    _watched: Processes

    def __init__(self, request: AttachRequest, target: RunDir, progress: Progress) -> None:
        self.request, self.target, self.progress = request, target, progress
        self.table = ProcessTable()
        self.labelled = _labelled(request)
        self.participants = Participants(request.targets, self.table, self.labelled)
        self.owners = OwnerLog(self._whose)
        self.unix = UnixLog(self._whose)
        self.peers = None if request.names_clients else Peers(self.participants, self.table, self.owners)
        self.clock_samples: list[dict[str, Any]] = []
        self.topology: dict[str, Any] | None = None
        self.ended_by = ""  # for people
        self.evidence = Evidence()
        self.failure: ZtprobeError | None = None
        self._failed_ns = 0
        self._agent_lives = True
        self.attached_ns = self.detached_ns = 0
        self._ended_rounds = self._newest_pid = 0
        self._looked_s = 0.0
        self._complete_log: Callable[[], None] = lambda: None

    def run(self) -> None:
        """From the first look to run.json."""
        self._sample_clock()
        directory = self.target.path
        agent_process = AgentProcess(  # first of all: it loads its probes while we look around
            directory / BATCHES_DIR, STATE_DIR, directory / "logs" / "agent.log", attached=True
        )
        with contextlib.closing(agent_process) as agent, self._rounds() as rounds:
            self._agent, self.rounds = agent, rounds
            self._find()
            with MachineLoad(self._pids, interval_s=_LOAD_S) as load:
                self._begin(agent)
                with self._until_interrupted():
                    self._watch_until_it_fails(agent)
                with self._until_interrupted(), shielded():
                    self._note_who_came()  # and who has gone since the last look
                    self.detached_ns = time.monotonic_ns()
                    load.stop()  # what it costs to put together what was seen is not the cost of watching
                    self.account = self._account(agent)
                    self._complete_log()
                    self._read_rounds()
        with self._until_interrupted(), shielded():
            self._sample_clock()
            write_run(self.target, self._record(load))
        if self.failure is not None:
            raise self.failure

    @contextlib.contextmanager
    def _rounds(self) -> Iterator[Rounds]:
        request = self.request
        with contextlib.ExitStack() as stack:
            lines = None
            if request.events_from == POD_LOG:
                found = stack.enter_context(self._pod_lines())
                if found is not None:
                    lines, self._complete_log = found.lines, found.complete
            elif request.events_from is not None:
                lines = stack.enter_context(Lines(request.events_from))
            yield Rounds(lines, request.framework, must_tell=request.must_tell)

    def _pod_lines(self) -> AbstractContextManager[PodLines | None]:
        server = self.request.server
        return pod_lines(
            self.labelled.log_of(server),
            self.labelled.log_reader(server),
            self.target.path / "logs" / "server.log",
            self.progress.note,
            must=self.request.must_tell,
        )

    def _find(self) -> None:
        self.progress.stage("participants")
        self.participants.first_look()
        self.labelled.in_force()  # as it was before anything was seen
        self._hold(None)
        self._look_at_sockets(at_attachment=True)
        server = self.participants.server
        ports = sorted(
            {
                end.socket.local_port
                for end in self.owners.ends
                if end.participant == server.name and end.socket.listens
            }
        )
        # Behind a hub a server only asks.
        if not ports and not any(target.role == "hub" for target in self.request.targets):
            raise UsageError(
                f"{self.request.targets[0].option}: nothing of it listens on a TCP port, so nobody can be its"
                " client; see `ztprobe attach --list`"
            )
        count = len(self.participants.all) - 1
        where = f"port {', '.join(map(str, ports[:4]))}" if ports else "no port"
        self.progress.done(f"{server.name} at {where}, {count} other{'' if count == 1 else 's'}")

    def _begin(self, agent: Agent) -> None:
        self.progress.stage("probes")
        agent.prepare()
        for held in self.namespaces.held.values():
            agent.add_pod(held.pod)
        self._watched = self._processes()
        agent.watch(self._watched)
        self._hooks = agent.start()
        self.attached_ns = time.monotonic_ns()
        self.stalls = participants_stalls(
            self.participants, self.namespaces, self.owners, after_s=self.request.stall_after_s
        )
        self.progress.done(f"{len(self._hooks)} signals attached")

    def _watch_until_it_fails(self, agent: Agent) -> None:
        """What was seen until then is kept; what was asked for and cannot be done leaves nothing."""
        try:
            self._watch(agent)
        except UsageError:
            raise
        except ZtprobeError as error:
            self._fails(error)

    def _fails(self, error: ZtprobeError) -> None:
        if self.failure is None:
            self.failure, self._failed_ns = error, time.monotonic_ns()

    def _account(self, agent: Agent) -> Account:
        try:
            return agent.stop()
        except ZtprobeError as error:  # it has died; what it wrote is there
            self._fails(error)
            self._agent_lives = False
            return Account(hooks=self._hooks, coverage=0.0, drop_reasons=kernel_drop_reasons())

    def _watch(self, agent: Agent) -> None:
        self.progress.stage("rounds", self.rounds.what)
        started_s = time.monotonic()
        next_look_s = next_sample_s = 0.0
        while not self.ended_by:
            with shielded():  # an answer of the agent's that is not read would be the next question's
                now_s = time.monotonic()
                if now_s >= next_look_s:
                    next_look_s = now_s + _LOOK_S
                    self._look(agent)
                if now_s >= next_sample_s:
                    next_sample_s = now_s + _SAMPLE_S
                    self._sample_clock()
                    self._look_at_topology(agent)
                    self._look_at_unix_sockets()
                self._read_rounds()
                if (stall := self.stalls.overdue(now_s, self.rounds)) is not None:
                    self.progress.note(stall_words(stall))
                self.ended_by = self._why_over(now_s - started_s)
            if not self.ended_by:
                time.sleep(_POLL_S)
        self.progress.done(self.ended_by)

    def _read_rounds(self) -> None:
        for number, duration_s in self.rounds.read(self.attached_ns, self.detached_ns):
            self._ended_rounds += 1
            wanted = max(self.request.rounds or 0, self._ended_rounds)
            self.progress.round_done(self._ended_rounds, wanted, duration_s, f"the server's round {number}")

    def _why_over(self, elapsed_s: float) -> str:
        """What ends the trace; empty: nothing yet."""
        request = self.request
        if request.rounds is not None and self.rounds.ended >= request.rounds:
            return f"{request.rounds} rounds have ended"
        if request.for_s is not None and elapsed_s >= request.for_s:
            return "the time is over"
        return "" if self.participants.server.running else "the server has ended"

    def _look(self, agent: Agent) -> None:
        newest, now_s = newest_pid(), time.monotonic()
        if newest != self._newest_pid or now_s - self._looked_s >= _LOOK_AT_LEAST_S:
            self._newest_pid, self._looked_s = newest, now_s
            self._note_who_came()
            for note in self.labelled.fresh_notes():
                self.progress.note(note)
            self._hold(agent)
            self._check(agent)
        self._look_at_sockets()
        if (processes := self._processes()) != self._watched:
            agent.watch(processes)
            self._watched = processes

    def _note_who_came(self) -> None:
        for one in self.participants.look():
            self._note_come(one)

    def _note_come(self, one: Participant) -> None:
        where = f" from {one.address}, where nobody watches" if one.address else ""
        self.progress.note(f"{one.name} has come{where}")

    def _look_at_topology(self, agent: Agent) -> None:
        seen = agent.topology()
        self.topology = seen if self.topology is None else endpoints.merged(self.topology, seen)

    def _look_at_unix_sockets(self) -> None:
        self.unix.look(
            {self.namespaces.held[inode].pod.netns: pids for inode, pids in self._by_namespace().items()}
        )

    def _look_at_sockets(self, *, at_attachment: bool = False) -> None:
        for _ in range(2):
            self.owners.look(self._by_namespace(), at_attachment=at_attachment)
            known = {one.name for one in self.participants.all}
            if self.peers is None or not self.peers.look(self._addresses()):
                return
            if not at_attachment:
                for one in self.participants.all:
                    if one.name not in known:
                        self._note_come(one)
            self.participants.look()
            self._hold(None if at_attachment else self._agent)

    def _hold(self, agent: Agent | None) -> None:
        members = [member.pid for one in self.participants.all for member in one.running]
        self.evidence.take(process for pid in members if (process := self.table.get(pid)) is not None)
        new, left = self.namespaces.renew(self.participants.all, self.table)
        for held in new:
            for note in held.notes:
                self.progress.note(note)
            if agent is not None:
                agent.add_pod(held.pod)
        for held in left:
            if agent is not None:
                agent.remove_pod(held.pod)
            self.namespaces.let_go(held.pod.netns_inode)

    def _check(self, agent: Agent) -> None:
        status = agent.status()
        for note in status.notes:
            self.progress.note(note)
        if status.problem is not None:
            raise EnforcementError(status.problem)

    @contextlib.contextmanager
    def _until_interrupted(self) -> Iterator[None]:
        """Ctrl-C is how most traces end: what there is by then is kept."""
        try:
            yield
        except Interrupted as signal:
            self.ended_by = f"ended by {signal}"
            self.progress.done(self.ended_by)

    def _sample_clock(self) -> None:
        self.clock_samples.append(dataclasses.asdict(take_sample()))

    def _whose(self, pid: int) -> str | None:
        one = self.participants.of(pid)
        return None if one is None else one.name

    def _pids(self) -> list[int]:
        return [member.pid for one in self.participants.all for member in list(one.running)]

    def _by_namespace(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {inode: [] for inode in self.namespaces.held}
        for one in self.participants.all:
            for member in sorted(one.running, key=lambda each: each.started_ticks):
                process = self.table.get(member.pid)
                if process is not None and process.netns_inode in found:
                    found[process.netns_inode].append(member.pid)
        return found

    def _processes(self) -> Processes:
        pods = {inode: held.pod.name for inode, held in self.namespaces.held.items()}
        return {
            member.pid: (
                pods[process.netns_inode],
                # The agent ties together what a proxy reads and writes: its reads are no message's end.
                SIDECAR if self.participants.is_sidecar(member.pid) else one.name,
            )
            for one in self.participants.all
            for member in one.running
            if (process := self.table.get(member.pid)) is not None and process.netns_inode in pods
        }

    def _addresses(self) -> list[str]:
        return [address for held in self.namespaces.held.values() for address in held.addresses]

    def _record(self, load: MachineLoad) -> RunRecord:
        return RunRecord(
            request=self.request,
            participants=self.participants.all,
            held=dict(self.namespaces.ever),
            owners=self.owners.ends,
            unix_sockets=self.unix.as_list(),
            rounds=self.rounds,
            account=self.account,
            load=load,
            topology=self.topology,
            clock_samples=self.clock_samples,
            attached_ns=self.attached_ns,
            detached_ns=self.detached_ns,
            evidence=self.evidence,
            in_force=self.labelled.in_force(),
            stalls=self.stalls.found,
            failed=self._failed(),
            agent_names=None if self._agent_lives else self._agent_names(),
        )

    def _failed(self) -> dict[str, Any] | None:
        if self.failure is None:
            return None
        reason = str(self.failure).replace(f"{self.target.path}/", "")  # files as the directory has them
        return {"reason": reason, "at_ns": self._failed_ns}

    def _agent_names(self) -> dict[str, Any]:
        pods = [held.pod for held in self.namespaces.ever.values()]
        return owners_of(pods, {pid: f"{pod}/{name}" for pid, (pod, name) in self._watched.items()})
