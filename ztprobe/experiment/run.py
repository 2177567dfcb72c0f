"""One traced job: baseline and experiment, each brought up, watched, written down and taken away.

The order matters and is the same on every runtime: pods, probes, profile (applied,
then measured while nothing blocks the way), security (in force, then proven), server,
clients, rounds. Everything is a context manager, so whatever ends the job early
(an error, Ctrl-C) undoes what is there; SIGKILL leaves a journal for `ztprobe clean`.
Results are written beside their place and renamed at the end: a run directory is
either whole or not there. A run that fails after the probes began to see is whole too:
its run.json says that it failed, why and when, and `ztprobe diagnose` reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from analysis.report.wording import plural
from ztprobe.agent.interface import Account, Agent
from ztprobe.agent.machine_load import LoadRecord
from ztprobe.agent.remote import AgentProcess
from ztprobe.agent.stalls import Stall, stall_words
from ztprobe.errors import EnforcementError, WorkloadError, ZtprobeError
from ztprobe.experiment.followers import await_followers
from ztprobe.experiment.level_switch import SwitchRecord
from ztprobe.experiment.missing_clients import Waiting, words
from ztprobe.experiment.quiet_check import ensure_quiet
from ztprobe.experiment.record import (
    accounted,
    described,
    kernel_drop_reasons,
    pod_record,
    save_logs,
)
from ztprobe.experiment.spec import Interference, RunSpec
from ztprobe.experiment.stall_watch import RunStalls, processes_of, workload_pods
from ztprobe.experiment.topology import seen_topology, unseen_topology
from ztprobe.experiment.watching import watching_of
from ztprobe.leases import notices
from ztprobe.paths import STATE_DIR
from ztprobe.pods.model import Pod
from ztprobe.process.interrupts import shielded
from ztprobe.progress import Progress
from ztprobe.rundir.batches import BATCHES_DIR
from ztprobe.rundir.logs import GrowingLog
from ztprobe.rundir.store import RunDir
from ztprobe.runtime import deployments
from ztprobe.runtime.interface import Enforcement, NotProven, Runtime

__all__ = ("Job", "run")

_SAMPLE_S = 5.0  # clocks and counters


def run(
    spec: RunSpec,
    target: RunDir,
    progress: Progress,
    *,
    interference: Interference | None = None,
) -> RunDir:
    """Run an experiment into an empty run directory, and return it, ready to be analysed.

    :param interference: acts on the run from outside.
    :raises ZtprobeError: something could not be set up, was not in force, or failed on the way.
    """
    Job(spec, target, progress, interference=interference).run()
    return target


class Job:
    """A run that is about to be made: whatever can be refused beforehand has been."""

    def __init__(
        self,
        spec: RunSpec,
        target: RunDir,
        progress: Progress,
        *,
        interference: Interference | None = None,
        agent: Callable[[RunDir], AbstractContextManager[Agent]] | None = None,
    ) -> None:
        """:param agent: begins the agent that is to watch and leave its events in the run directory;
            None: a process of this machine.
        :raises UsageError: the manifests ask for something that is not supported."""
        self.spec = spec
        self.target = target
        self.progress = progress
        self.interference = interference
        self.run_id = secrets.token_hex(3)
        self._see, nodes = watching_of(spec, self.run_id, target, agent or self._process)
        self.runtime = deployments.make(
            spec.runtime,
            spec.options,
            run_id=self.run_id,
            log_dir=target.path / "logs",
            offloads=spec.offloads,
            congestion_control=spec.congestion_control,
            manifests_dir=spec.manifests_dir,
            as_admitted=not spec.try_controls,
            place=spec.place,
            nodes=nodes,
            progress=progress,
        )
        self.told: list[dict[str, Any]] = []  # of profiles that others put on the pods
        self.processes: dict[int, str] = {}  # all that there were: process id -> pod/container
        self._hooks: dict[str, str] = {}
        self._failed_ns: int | None = None
        self._stalls: RunStalls | None = None
        self.notices = GrowingLog(STATE_DIR / self.run_id / notices.FILE)
        self.meta: dict[str, Any] = {"pod_counters": [], "exits": []}

    @property
    def clock_samples(self) -> list[dict[str, Any]]:
        """Of the clock that the server's events carry, so far."""
        return self._see.clock_samples

    def run(self) -> None:
        """Everything from pods to run.json.

        :raises ZtprobeError: it failed. What was seen until then is in the run directory nevertheless,
            whose run.json says so, once the probes have begun to see.
        """
        started_ns = time.monotonic_ns()
        self._see.sample()
        # First of all: it loads its probes while the pods come up.
        with (
            self._see.agent(self.target) as agent,
            self._runtime_up() as runtime,
            self._see.load(runtime) as load,
            contextlib.closing(agent),  # before the pods go
        ):
            self.progress.done(f"{len(runtime.pods)} pods {self._see.where()}")
            self._attach(agent, runtime)
            failure = self._watched(agent, runtime, load)
            account, ended_early = self._account(agent)
            failure = failure or ended_early
            load.stop()
            self.meta["emulation"]["stats"] = account.emulation
            # Read from the kernel, whatever was asked for.
            self.meta["emulation"]["observed"] = account.observed
            if account.schedule is not None:
                self.meta["emulation"]["schedule"] = account.schedule
            if others := notices.merged(self.told):
                self.meta["emulation"]["others"] = others
            self.meta["facts"] = runtime.facts()
            self.meta["pods"] = [pod_record(pod) for pod in runtime.pods]
            logs = {pod.name: _log(runtime, pod) for pod in workload_pods(runtime)}
            save_logs(self.target, logs, runtime.server.name, is_whole=failure is None)
            owners = self._see.owners(runtime, self.processes)
        self.meta["stalls"] = [stall.as_dict() for stall in self.stalls]
        if failure is not None:
            reason = str(failure).replace(f"{self.target.path}/", "")  # files as the directory has them
            self.meta["failed"] = {"reason": reason, "at_ns": self._failed_ns or self._see.now_ns()}
        rows = self.meta["table_rows"] = self._see.save(self.target, account, owners)
        machine = load.table()
        self.target.write_events("machine", machine)
        rows["machine"] = len(machine)
        self._see.sample()
        self._finish(account, load, time.monotonic_ns() - started_ns)
        if failure is not None:
            raise failure

    def _watched(self, agent: Agent, runtime: Runtime, load: LoadRecord) -> ZtprobeError | None:
        """Profile, security and rounds, all of it seen by the probes; what ended it early is returned."""
        nothing = dict.fromkeys(("backend", "requested", "measured"))
        self.meta["emulation"] = {"profile": self.spec.profile.name, **nothing}
        self.meta["enforcement"] = dataclasses.asdict(runtime.expected())
        try:
            if self.interference is not None:
                self.interference.prepare(runtime)
            self._emulate(agent, runtime)
            self._secure(runtime, agent)
            self._count(agent)
            with self.interference.during(runtime) if self.interference else contextlib.nullcontext():
                agent.follow()
                self._rounds(runtime, agent, load)
        except ZtprobeError as error:
            self._failed_ns = self._see.now_ns()
            self._note_exits(runtime)
            if runtime.edges:
                await_followers(lambda: self._note_exits(runtime), self.meta["exits"])
            with contextlib.suppress(ZtprobeError):  # the agent itself may have died
                self._count(agent)
                self._look_at_topology(agent, runtime)
            self.meta.setdefault("topology", unseen_topology(runtime))
            return error
        return None

    def _account(self, agent: Agent) -> tuple[Account, ZtprobeError | None]:
        """What the agent tells at the end, and what was wrong until then."""
        try:
            account = agent.stop()
        except ZtprobeError as error:  # it has died; what it wrote is there
            return Account(hooks=self._hooks, coverage=0.0, drop_reasons=kernel_drop_reasons()), error
        problem = None if account.problem is None else EnforcementError(account.problem)
        return account, problem

    def _count(self, agent: Agent) -> None:
        self.meta["pod_counters"].append(agent.counters())

    def _note_exits(self, runtime: Runtime) -> None:
        at_ns, known = self._see.now_ns(), {one["process"] for one in self.meta["exits"]}
        new = {process: status for process, status in runtime.exits().items() if process not in known}
        self.meta["exits"] += [{"process": p, "status": status, "at_ns": at_ns} for p, status in new.items()]

    def _process(self, target: RunDir) -> AgentProcess:
        directory = target.path
        return AgentProcess(
            directory / BATCHES_DIR,
            STATE_DIR / self.run_id,
            directory / "logs" / "agent.log",
            probes=self.spec.probes,
            attached=self.spec.sees_turns,
        )

    def _finish(self, account: Account, load: LoadRecord, wall_ns: int) -> None:
        record = self.meta | described(self.spec) | accounted(account)
        record |= self._see.described(pod["name"] for pod in self.meta["pods"])
        record["wall_ns"] = wall_ns
        record["machine_load"] = self.meta.get("machine_load", {}) | load.facts()
        record["agent_cpu_ns"] += load.cpu_ns
        # Tuples become lists, as they will be read back; what is no number must not cost a finished run.
        self.target.finish(json.loads(json.dumps(record), parse_constant=lambda _name: None))

    @contextlib.contextmanager
    def _runtime_up(self) -> Iterator[Runtime]:
        dns = ", DNS" if self.spec.runtime == "local" else ""
        self.progress.stage("pods", f"{plural(self.spec.options.clients, 'client')}, one server{dns}")
        try:
            self.runtime.create()
            yield self.runtime
        finally:
            with shielded():
                self.runtime.down()

    def _attach(self, agent: Agent, runtime: Runtime) -> None:
        self.progress.stage("probes")
        agent.prepare()
        for pod in workload_pods(runtime):
            agent.add_pod(pod)
        hooks = self._hooks = agent.start()
        self.progress.done(f"{len(hooks)} signals attached")
        for signal, hook in hooks.items():
            self.progress.note(f"  {signal:<16} {hook}")

    def _emulate(self, agent: Agent, runtime: Runtime) -> None:
        name = self.spec.profile.name
        self.progress.stage("network profile", name)
        agent.apply(self.spec.profile, seed=self.spec.experiment.seed)
        found = agent.measure(runtime.server.name, [pod.name for pod in (*runtime.edges, *runtime.clients)])
        self.meta["emulation"] |= {
            "backend": found.backend,
            "requested": found.requested,
            "measured": found.measured,
            "details": found.details,
        }
        if found.problems:
            self.meta["emulation"]["problems"] = list(found.problems)
            what = f"{name} is not what the pods got: {'; '.join(found.problems)}"
            raise EnforcementError(f"{what}; nothing was measured")
        self.progress.done(f"{name} by {found.backend}: {found.summary}")

    def _secure(self, runtime: Runtime, agent: Agent) -> None:
        self.progress.stage("security", f"sec{self.spec.experiment.level}")
        runtime.secure()
        runtime.start_server()
        self._watch(agent, runtime)
        self._look_at_topology(agent, runtime)
        enforcement = self._proven(runtime) if self.spec.try_controls else runtime.expected()
        self.meta["enforcement"] = dataclasses.asdict(enforcement)
        proofs = enforcement.proofs
        checks = f"{len(proofs)} checks passed" if proofs else "none"
        self.progress.done(f"sec{self.spec.experiment.level}: {checks}")
        for proof in proofs:
            self.progress.note(f"  {proof.name}: {proof.observed}")

    def _proven(self, runtime: Runtime) -> Enforcement:
        from_ns = self._see.now_ns()
        try:
            return runtime.prove()
        except NotProven as error:
            self.meta["enforcement"] = dataclasses.asdict(error.enforcement)
            raise
        finally:
            self.meta["proof"] = {"from_ns": from_ns, "to_ns": self._see.now_ns()}

    def _rounds(self, runtime: Runtime, agent: Agent, load: LoadRecord) -> None:
        quiet_s = self.spec.wait_for_quiet_s
        self.meta["machine_load"] = ensure_quiet(load, quiet_s, self.progress, runtime.check)
        self.progress.stage("rounds", plural(self.spec.options.rounds, "round"))
        self.meta["clients_started_ns"] = self._see.now_ns()
        runtime.start_clients()
        # Whoever talks to the server: where there are edges, no client does.
        clients = [pod.name for pod in runtime.edges or runtime.clients]
        waiting = Waiting(clients, time.monotonic())
        stalls = self._stalls = self._see.stalls(runtime, clients, self.spec.stall_after_s)
        switch = SwitchRecord(
            self.spec.level_switch, runtime, self.meta, self.progress, lambda: self._watch(agent, runtime)
        )
        self._watch(agent, runtime)
        log = GrowingLog(_log(runtime, runtime.server))
        starts: dict[Any, int] = {}
        next_sample = time.monotonic()
        limit_s = self.spec.limit_s
        latest = time.monotonic() + limit_s if limit_s is not None else None
        while True:
            finished = runtime.finished()
            self._watch(agent, runtime)
            events = log.fresh()
            if not starts or any(event["event"] == "round_start" for event in events):
                self._look_at_topology(agent, runtime)
            for event in events:
                waiting.take(event)
                stalls.take(event)
                switch.take(event)
                number = event.get("round")
                if event["event"] == "round_start":
                    starts[number] = event["time_monotonic_ns"]
                elif event["event"] == "round_end" and number in starts:
                    duration_s = (event["time_monotonic_ns"] - starts[number]) / 1e9
                    self.progress.round_done(int(number or 0), self.spec.options.rounds, duration_s)
            self._listen()
            self._check(agent, runtime)
            if finished:
                break
            self._note_exits(runtime)
            runtime.check()
            if latest is not None and time.monotonic() > latest:
                ended = plural(len(starts), "round")
                raise WorkloadError(f"not through after {limit_s:.0f} s: {ended} begun")
            if (missing := waiting.overdue(time.monotonic())) is not None:
                said = runtime.last_words(missing[0], "client") if missing else ""
                self.progress.note(words(missing, said))
            if time.monotonic() > next_sample:
                self._tell(agent, runtime, load)
                next_sample += _SAMPLE_S
            if (stall := stalls.overdue(self._see.now_ns() / 1e9)) is not None:
                self.progress.note(stall_words(stall))
                self._tell(agent, runtime, load)
            time.sleep(self._see.poll_s)
        self._count(agent)
        self.progress.done(plural(len(starts), "round"))

    @property
    def stalls(self) -> list[Stall]:
        """That were noticed so far."""
        return self._stalls.found if self._stalls is not None else []

    def _tell(self, agent: Agent, runtime: Runtime, load: LoadRecord) -> None:
        """A sample of clocks and counters, and all that is known by now for who asks meanwhile."""
        self._see.sample()
        self._count(agent)
        self._see.tell(self, runtime, self._hooks, load)

    def _watch(self, agent: Agent, runtime: Runtime) -> None:
        processes = processes_of(runtime)
        self.processes |= {pid: f"{pod}/{container}" for pid, (pod, container) in processes.items()}
        agent.watch(processes)

    def _look_at_topology(self, agent: Agent, runtime: Runtime) -> None:
        self.meta["topology"] = seen_topology(self.meta, agent, runtime)

    def _check(self, agent: Agent, runtime: Runtime) -> None:
        status = agent.status()
        for note in status.notes:
            self.progress.note(note)
        if status.problem is not None:
            runtime.check()  # a pod that goes takes its interfaces along
            raise EnforcementError(status.problem)

    def _listen(self) -> None:
        events = self.notices.fresh()
        before = [notices.words(event) for event in self.told]
        self.told += events
        for text in dict.fromkeys(map(notices.words, events)):
            if text is not None and text not in before:  # an end is said by all who see to it
                self.progress.note(text)


def _log(runtime: Runtime, pod: Pod) -> Path:
    return runtime.source.log(pod, runtime.applications[pod.name])
