"""One traced job: baseline and experiment, each brought up, watched, written down and taken away.

The order matters and is the same on every runtime: pods, probes, profile (applied,
then measured while nothing blocks the way), security (in force, then proven), server,
clients, rounds. Everything is a context manager, so whatever ends the job early
(an error, Ctrl-C) undoes what is there; SIGKILL leaves a journal for `ztprobe clean`.
Results are written beside their place and renamed at the end: a run directory is
either whole or not there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from analysis.report.wording import plural
from ztprobe import __version__
from ztprobe.agent.emulator import Emulator
from ztprobe.agent.node_agent import Agent
from ztprobe.errors import EnforcementError, WorkloadError
from ztprobe.experiment.spec import Interference, RunSpec
from ztprobe.leases import notices
from ztprobe.paths import STATE_DIR
from ztprobe.pods.model import Pod
from ztprobe.pods.source import Processes
from ztprobe.process.interrupts import shielded
from ztprobe.progress import Progress
from ztprobe.rundir.clock import take_sample
from ztprobe.rundir.logs import GrowingLog, read_events
from ztprobe.rundir.store import RunDir
from ztprobe.runtime import deployments
from ztprobe.runtime.interface import Runtime

__all__ = ("Job", "run")

_POLL_S = 0.1
_CLOCK_SAMPLE_S = 5.0
_VERSIONS = ("grpcio", "torch", "numpy", "pandas", "pyroute2")


def run(
    spec: RunSpec,
    target: RunDir,
    progress: Progress,
    *,
    interference: Interference | None = None,
    agent: Callable[[], Agent] = Agent,
) -> RunDir:
    """Run an experiment into an empty run directory, and return it, ready to be analysed.

    :param interference: acts on the run from outside.
    :param agent: instead of one that watches from beginning to end.
    :raises ZtprobeError: something could not be set up, was not in force, or failed on the way.
    """
    Job(spec, target, progress, interference=interference, agent=agent).run()
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
        agent: Callable[[], Agent] = Agent,
    ) -> None:
        """:raises UsageError: the manifests ask for something that is not supported."""
        self.spec = spec
        self.target = target
        self.progress = progress
        self.interference = interference
        self.agent = agent
        self.run_id = secrets.token_hex(3)
        self.runtime = deployments.make(
            spec.runtime,
            spec.options,
            run_id=self.run_id,
            log_dir=target.path / "logs",
            offloads=spec.offloads,
        )
        self.clock_samples: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []  # of profiles that others put on the pods
        self.notices = GrowingLog(STATE_DIR / self.run_id / notices.FILE)
        self.meta: dict[str, Any] = {}

    def run(self) -> None:
        """Everything from pods to run.json."""
        started_ns = time.monotonic_ns()
        self.clock_samples.append(dataclasses.asdict(take_sample()))
        with self._runtime_up() as runtime, self.agent() as agent:
            agent.prepare()
            fl_pods = [runtime.server, *runtime.clients]
            self.progress.done(f"{len(runtime.pods)} pods on one node")
            self._attach(agent, runtime, fl_pods)
            state_dir = STATE_DIR / self.run_id
            with Emulator(
                self.spec.profile, fl_pods, runtime.server.node_netns, state_dir, self.spec.experiment.seed
            ) as emulator:
                self._emulate(emulator, runtime)
                self._secure(runtime, agent)
                with self.interference.during(runtime) if self.interference else contextlib.nullcontext():
                    emulator.follow(self.progress.note)
                    self._rounds(runtime, agent, emulator)
                emulation_stats = emulator.stats()
                observation = agent.stop()
            self.meta["emulation"]["stats"] = emulation_stats
            if (schedule := emulator.schedule_record()) is not None:
                self.meta["emulation"]["schedule"] = schedule
            if others := notices.merged(self.told):
                self.meta["emulation"]["others"] = others
            self.meta["emulator_cpu_ns"] = int(emulation_stats.get("cpu_ns", 0))
            self.meta["facts"] = runtime.facts()
            self.meta["pods"] = [_pod_record(pod) for pod in runtime.pods]
            self._save_logs(runtime)
        for name, table in observation.tables.items():
            self.target.write_events(name, table)
        self.clock_samples.append(dataclasses.asdict(take_sample()))
        experiment, options = self.spec.experiment, self.spec.options
        run_time_ns = sum(probe["run_time_ns"] for probe in observation.probes)
        record = self.meta | {
            "experiment": dataclasses.asdict(experiment) | {"name": experiment.name},
            "options": dataclasses.asdict(options) | {"data_dir": str(options.data_dir or "")},
            "runtime": self.spec.runtime,
            "kernel": platform.release(),
            "machine": platform.machine(),
            "versions": _versions(),
            "hooks": observation.hooks,
            "probes": observation.probes,
            "drop_reasons": {str(number): name for number, name in observation.drop_reasons.items()},
            "clock_samples": self.clock_samples,
            "loss": observation.loss,
            "loss_log": observation.loss_log,
            "table_rows": {name: len(table) for name, table in observation.tables.items()},
            "coverage": observation.coverage,
            "events_seen": observation.events_seen,
            "events_unread": observation.events_unread,
            "agent_cpu_ns": run_time_ns + observation.reader_cpu_ns,
            "wall_ns": time.monotonic_ns() - started_ns,
            "cores": os.cpu_count() or 1,
        }
        self.target.finish(json.loads(json.dumps(record)))  # tuples become lists, as they will be read back

    @contextlib.contextmanager
    def _runtime_up(self) -> Iterator[Runtime]:
        self.progress.stage("pods", f"{plural(self.spec.options.clients, 'client')}, one server, DNS")
        try:
            self.runtime.create()
            yield self.runtime
        finally:
            with shielded():
                self.runtime.down()

    def _attach(self, agent: Agent, runtime: Runtime, fl_pods: list[Pod]) -> None:
        self.progress.stage("probes")
        hooks = agent.attach(fl_pods)
        self.progress.done(f"{len(hooks)} signals attached")
        for signal, hook in hooks.items():
            self.progress.note(f"  {signal:<16} {hook}")

    def _emulate(self, emulator: Emulator, runtime: Runtime) -> None:
        self.progress.stage("network profile", self.spec.profile.name)
        emulator.apply()
        measured = emulator.measure(runtime.server, runtime.clients)
        if problems := measured.problems(self.spec.profile.steps[0]):
            what = f"{self.spec.profile.name} is not what the pods got: {'; '.join(problems)}"
            raise EnforcementError(f"{what}; nothing was measured")
        self.meta["emulation"] = {
            "profile": self.spec.profile.name,
            "backend": emulator.backend,
            "requested": emulator.requested(),
            "measured": measured.as_dict(),
            "details": measured.details(),
        }
        self.progress.done(f"{self.spec.profile.name} by {emulator.backend}: {measured.summary()}")

    def _secure(self, runtime: Runtime, agent: Agent) -> None:
        self.progress.stage("security", f"sec{self.spec.experiment.level}")
        runtime.secure()
        runtime.start_server()
        agent.watch(_processes(runtime))
        enforcement = runtime.prove()
        self.meta["enforcement"] = dataclasses.asdict(enforcement)
        proofs = (*enforcement.network_policy, *enforcement.mtls)
        self.progress.done(
            f"sec{self.spec.experiment.level}: {len(proofs)} checks passed" if proofs else "sec0: none"
        )
        for proof in proofs:
            self.progress.note(f"  {proof.name}: {proof.observed}")

    def _rounds(self, runtime: Runtime, agent: Agent, emulator: Emulator) -> None:
        self.progress.stage("rounds", plural(self.spec.options.rounds, "round"))
        self.meta["clients_started_ns"] = time.monotonic_ns()
        runtime.start_clients()
        agent.watch(_processes(runtime))
        log = GrowingLog(_log(runtime, runtime.server))
        starts, next_sample = {}, time.monotonic() + _CLOCK_SAMPLE_S
        limit_s = self.spec.limit_s
        latest = time.monotonic() + limit_s if limit_s is not None else None
        while True:
            finished = runtime.finished()
            agent.watch(_processes(runtime))
            for event in log.fresh():
                number = event.get("round")
                if event["event"] == "round_start":
                    starts[number] = event["time_monotonic_ns"]
                elif event["event"] == "round_end" and number in starts:
                    duration_s = (event["time_monotonic_ns"] - starts[number]) / 1e9
                    self.progress.round_done(int(number or 0), self.spec.options.rounds, duration_s)
            self._listen()
            emulator.check()
            agent.check()
            if finished:
                break
            runtime.check()
            if latest is not None and time.monotonic() > latest:
                ended = plural(len(starts), "round")
                raise WorkloadError(f"not through after {limit_s:.0f} s: {ended} begun")
            if time.monotonic() > next_sample:
                self.clock_samples.append(dataclasses.asdict(take_sample()))
                next_sample += _CLOCK_SAMPLE_S
            time.sleep(_POLL_S)
        self.progress.done(plural(len(starts), "round"))

    def _listen(self) -> None:
        events = self.notices.fresh()
        before = [notices.words(event) for event in self.told]
        self.told += events
        for words in dict.fromkeys(map(notices.words, events)):
            if words is not None and words not in before:  # an end is said by all who see to it
                self.progress.note(words)

    def _save_logs(self, runtime: Runtime) -> None:
        for pod in (runtime.server, *runtime.clients):
            name = "rounds.jsonl" if pod == runtime.server else "clients.jsonl"
            self.target.append_jsonl(name, *read_events(_log(runtime, pod)))


def _processes(runtime: Runtime) -> Processes:
    return runtime.source.processes((runtime.server, *runtime.clients))


def _log(runtime: Runtime, pod: Pod) -> Path:
    return runtime.source.log(pod, runtime.applications[pod.name])


def _pod_record(pod: Pod) -> dict[str, Any]:
    return {
        "name": pod.name,
        "namespace": pod.namespace,
        "labels": dict(pod.labels),
        "address": pod.address,
        "netns_inode": pod.netns_inode,
        "interface": pod.interface,
    }


def _versions() -> dict[str, str]:
    found = {"ztprobe": __version__, "python": platform.python_version()}
    for name in _VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
