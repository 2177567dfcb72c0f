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
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from analysis.report.wording import plural
from ztprobe import __version__
from ztprobe.agent.emulator import Emulator
from ztprobe.agent.node_agent import Agent
from ztprobe.errors import EnforcementError, WorkloadError
from ztprobe.experiment.names import Experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.leases import notices
from ztprobe.paths import STATE_DIR
from ztprobe.process.interrupts import shielded
from ztprobe.profile.model import Profile, load_profile
from ztprobe.progress import Progress
from ztprobe.rundir.clock import take_sample
from ztprobe.rundir.store import BASELINE_DIR, RunDir, create_run_dir
from ztprobe.runtime.interface import Pod, Runtime, WorkloadOptions
from ztprobe.runtime.local.journal import appearing_whole, clean_leftovers
from ztprobe.runtime.local.runtime import LocalRuntime

__all__ = ("Interference", "run_disturbed", "run_trace")

_POLL_S = 0.1
_CLOCK_SAMPLE_S = 5.0
_VERSIONS = ("grpcio", "torch", "numpy", "pandas", "pyroute2")


def run_trace(request: TraceRequest, progress: Progress) -> Path:
    """Run what was asked for and return the run directory, ready to be analysed.

    :raises ZtprobeError: something could not be set up, was not in force, or failed on the way.
    """
    for line in clean_leftovers():
        progress.note(f"left by an interrupted run: {line}")
    with appearing_whole(request.out) as partial:
        try:
            _run_jobs(request, partial, progress)
        except WorkloadError as error:
            raise WorkloadError(_with_kept_logs(str(error), partial)) from error
    return request.out


def _run_jobs(request: TraceRequest, directory: Path, progress: Progress) -> None:
    outcome = create_run_dir(directory, shown=request.out)
    # All runs of a call see packets of the same size, or the offloads would pass for the profile's cost.
    per_packet = any(load_profile(e.profile).per_packet for e in request.experiments)
    jobs = []  # all of them first: what the second cannot do should not show after the first has run
    for experiment in request.experiments:
        is_baseline = experiment is not request.experiment
        target = create_run_dir(directory / BASELINE_DIR) if is_baseline else outcome
        jobs.append(_Job(request, experiment, target, progress, offloads=not per_packet))
    for job in jobs:
        progress.note(f"{job.experiment.name}{'' if job.target is outcome else ' (baseline)'}")
        job.run()


def _with_kept_logs(message: str, partial: Path) -> str:
    # A log that the message names would be gone with everything else that is unfinished.
    if str(partial) not in message:
        return message
    kept = tempfile.mkdtemp(prefix="ztprobe-failed-")
    for logs in partial.rglob("logs"):
        shutil.copytree(logs, kept / logs.relative_to(partial))
    return message.replace(str(partial), kept)


class Interference(Protocol):
    """Something that acts on a run from outside, such as a known cost put in one place."""

    def during(self, runtime: Runtime) -> AbstractContextManager[None]:
        """Entered when everything but the clients runs, left after the last round."""
        ...


def run_disturbed(
    request: TraceRequest,
    target: RunDir,
    progress: Progress,
    *,
    offloads: bool,
    profile: Profile | None,
    environment: Mapping[str, str],
    interference: Interference,
    agent: Callable[[], Agent] = Agent,
) -> None:
    """Run the request's experiment, without a baseline, into ``target`` while something acts on it.

    :param profile: instead of the one that the experiment's name says.
    :param environment: for the workload's containers.
    :param agent: instead of one that watches from beginning to end.
    :raises ZtprobeError: something could not be set up, was not in force, or failed on the way.
    """
    _Job(
        request,
        request.experiment,
        target,
        progress,
        offloads=offloads,
        profile=profile,
        environment=environment,
        interference=interference,
        agent=agent,
    ).run()


class _Job:
    """One run of one experiment."""

    def __init__(
        self,
        request: TraceRequest,
        experiment: Experiment,
        target: RunDir,
        progress: Progress,
        *,
        offloads: bool,
        profile: Profile | None = None,
        environment: Mapping[str, str] | None = None,
        interference: Interference | None = None,
        agent: Callable[[], Agent] = Agent,
    ) -> None:
        self.request = request
        self.experiment = experiment
        self.target = target
        self.progress = progress
        self.profile = profile or load_profile(experiment.profile)
        self.interference = interference
        self.agent = agent
        self.run_id = secrets.token_hex(3)
        self.options = WorkloadOptions(
            rounds=request.rounds,
            clients=request.clients,
            seed=experiment.seed,
            distribution=experiment.distribution,
            dataset=request.dataset,
            data_dir=request.data_dir,
            reconnect=request.reconnect,
            level=experiment.level,
            environment=dict(environment or {}),
        )
        self.runtime: Runtime = LocalRuntime(
            self.options, run_id=self.run_id, log_dir=target.path / "logs", offloads=offloads
        )
        self.clock_samples: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []  # of profiles that others put on the pods
        self.told_bytes = 0
        self.meta: dict[str, Any] = {}

    def run(self) -> None:
        """Everything from pods to run.json."""
        started_ns = time.monotonic_ns()
        self.clock_samples.append(dataclasses.asdict(take_sample()))
        with self._runtime_up() as runtime, self.agent() as agent:
            agent.prepare()
            fl_pods = [pod for pod in runtime.pods if pod.labels.get("app", "").startswith("fl-")]
            self.progress.done(f"{len(runtime.pods)} pods on one node")
            self._attach(agent, runtime, fl_pods)
            state_dir = STATE_DIR / self.run_id
            with Emulator(
                self.profile, fl_pods, runtime.node_netns, state_dir, self.experiment.seed
            ) as emulator:
                self._emulate(emulator, fl_pods)
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
            self._save_logs(runtime, fl_pods)
        for name, table in observation.tables.items():
            self.target.write_events(name, table)
        self.clock_samples.append(dataclasses.asdict(take_sample()))
        run_time_ns = sum(probe["run_time_ns"] for probe in observation.probes)
        record = self.meta | {
            "experiment": dataclasses.asdict(self.experiment) | {"name": self.experiment.name},
            "options": dataclasses.asdict(self.options) | {"data_dir": str(self.options.data_dir or "")},
            "runtime": "local",
            "kernel": platform.release(),
            "machine": platform.machine(),
            "versions": _versions(),
            "hooks": observation.hooks,
            "probes": observation.probes,
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
        self.progress.stage("pods", f"{plural(self.request.clients, 'client')}, one server, DNS")
        try:
            self.runtime.create()
            yield self.runtime
        finally:
            with shielded():
                self.runtime.down()

    def _attach(self, agent: Agent, runtime: Runtime, fl_pods: list[Pod]) -> None:
        self.progress.stage("probes")
        hooks = agent.attach(fl_pods, runtime.node_netns)
        self.progress.done(f"{len(hooks)} signals attached")
        for signal, hook in hooks.items():
            self.progress.note(f"  {signal:<16} {hook}")

    def _emulate(self, emulator: Emulator, fl_pods: list[Pod]) -> None:
        server = next(pod for pod in fl_pods if pod.labels["app"] == "fl-server")
        clients = [pod for pod in fl_pods if pod is not server]
        self.progress.stage("network profile", self.profile.name)
        emulator.apply()
        measured = emulator.measure(server, clients)
        if problems := measured.problems(self.profile.steps[0]):
            raise EnforcementError(
                f"{self.profile.name} is not what the pods got: {'; '.join(problems)}; nothing was measured"
            )
        self.meta["emulation"] = {
            "profile": self.profile.name,
            "backend": emulator.backend,
            "requested": emulator.requested(),
            "measured": measured.as_dict(),
            "details": measured.details(),
        }
        self.progress.done(f"{self.profile.name} by {emulator.backend}: {measured.summary()}")

    def _secure(self, runtime: Runtime, agent: Agent) -> None:
        self.progress.stage("security", f"sec{self.experiment.level}")
        runtime.secure()
        runtime.start_server()
        agent.watch(runtime.processes())
        enforcement = runtime.prove()
        self.meta["enforcement"] = dataclasses.asdict(enforcement)
        proofs = (*enforcement.network_policy, *enforcement.mtls)
        self.progress.done(
            f"sec{self.experiment.level}: {len(proofs)} checks passed" if proofs else "sec0: none"
        )
        for proof in proofs:
            self.progress.note(f"  {proof.name}: {proof.observed}")

    def _rounds(self, runtime: Runtime, agent: Agent, emulator: Emulator) -> None:
        self.progress.stage("rounds", plural(self.request.rounds, "round"))
        self.meta["clients_started_ns"] = time.monotonic_ns()
        runtime.start_clients()
        agent.watch(runtime.processes())
        log = runtime.log_path("fl-server", "server")
        offset, starts, next_sample = 0, {}, time.monotonic() + _CLOCK_SAMPLE_S
        while True:
            finished = runtime.finished()
            agent.watch(runtime.processes())
            offset, events = _new_events(log, offset)
            for event in events:
                number = event.get("round")
                if event["event"] == "round_start":
                    starts[number] = event["time_monotonic_ns"]
                elif event["event"] == "round_end" and number in starts:
                    duration_s = (event["time_monotonic_ns"] - starts[number]) / 1e9
                    self.progress.round_done(int(number or 0), self.request.rounds, duration_s)
            self._listen()
            emulator.check()
            agent.check()
            if finished:
                break
            runtime.check()
            if time.monotonic() > next_sample:
                self.clock_samples.append(dataclasses.asdict(take_sample()))
                next_sample += _CLOCK_SAMPLE_S
            time.sleep(_POLL_S)
        self.progress.done(plural(len(starts), "round"))

    def _listen(self) -> None:
        self.told_bytes, events = _new_events(STATE_DIR / self.run_id / notices.FILE, self.told_bytes)
        before = [notices.words(event) for event in self.told]
        self.told += events
        for words in dict.fromkeys(map(notices.words, events)):
            if words is not None and words not in before:  # an end is said by all who see to it
                self.progress.note(words)

    def _save_logs(self, runtime: Runtime, fl_pods: list[Pod]) -> None:
        for pod in fl_pods:
            role = pod.labels["app"].removeprefix("fl-")  # also the container's name in the manifests
            _, events = _new_events(runtime.log_path(pod.name, role), 0)
            name = "rounds.jsonl" if role == "server" else "clients.jsonl"
            self.target.append_jsonl(name, *events)


def _new_events(log: Path, offset: int) -> tuple[int, list[dict[str, Any]]]:
    """Whole JSON lines behind ``offset``; a half-written last line is left for the next call."""
    try:
        with log.open("rb") as stream:
            stream.seek(offset)
            text = stream.read()
    except FileNotFoundError:
        return offset, []
    whole = text[: text.rfind(b"\n") + 1]
    events = []
    for line in whole.splitlines():
        if not line.startswith(b"{"):
            continue
        try:
            event = json.loads(line)
        except ValueError as error:
            raise WorkloadError(f"{log.name}: not a JSON event: {line[:80]!r}") from error
        if "event" in event:
            events.append(event)
    return offset + len(whole), events


def _pod_record(pod: Pod) -> dict[str, Any]:
    return {
        "name": pod.name,
        "namespace": pod.namespace,
        "labels": pod.labels,
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
