"""One scenario from its plan to its outcome: run, capture, ledger, comparison."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ztprobe.agent.endpoints import pod_sockets, topology
from ztprobe.errors import ZtprobeError
from ztprobe.experiment.names import parse_experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.experiment.run import run
from ztprobe.experiment.spec import RunSpec, spec_of
from ztprobe.kernelnet.sockets import SocketTables
from ztprobe.pods.model import Pod
from ztprobe.pods.source import Processes
from ztprobe.profile.model import profile_names
from ztprobe.progress import QuietProgress
from ztprobe.rundir import files
from ztprobe.rundir.store import create_run_dir, load_run
from ztprobe.runtime.interface import Runtime
from ztprobe.validate.comparison import RunEvidence
from ztprobe.validate.inject.scene import Follower, Note, Scene
from ztprobe.validate.model import Outcome, ValidationCase, judge
from ztprobe.validate.observe.capture import Capture
from ztprobe.validate.scenarios.catalogue import CLIENTS, Scenario
from ztprobe.validate.scenarios.plan import OTHER, SERVER, TARGET, Plan

__all__ = ("run_scenario", "server_port")

# Five batches: what is added to training or to a message is measured, not training.
_SHORT_TRAINING = {"FL_MAX_SAMPLES": "160"}


def run_scenario(scenario: Scenario, out: Path) -> Outcome:
    """Run a scenario into the run directory ``out`` and compare.

    :raises ZtprobeError: the run could not be made, or the observation of it has holes.
    """
    plan = scenario.make(scenario.by_round)
    injection = _Injection(scenario, plan, out)
    try:
        run(_spec(scenario, plan, out), create_run_dir(out), QuietProgress(), interference=injection)
        evidence = RunEvidence(
            run=load_run(out),
            packets=injection.capture.packets() if injection.capture else {},
            notes=injection.notes,
            target=TARGET,
            sizes={k: scenario.label(size) for k, size in scenario.by_round.items()},
        )
        outcome = _compare(scenario, plan, evidence, injection.problems, out)
    finally:
        for directory in (injection.captures, injection.state_dir):
            files.remove_tree(directory)
    return outcome


def _compare(
    scenario: Scenario, plan: Plan, evidence: RunEvidence, problems: list[str], out: Path
) -> Outcome:
    cases: list[ValidationCase] = []
    problems = list(problems)
    for claim in plan.claims:
        pairs = claim.measure(evidence)
        wanted = {scenario.label(size) for size in scenario.by_round.values()}
        if missing := sorted(wanted - {pair.size for pair in pairs}):
            seen = f" ({'; '.join(evidence.skipped[:2])})" if evidence.skipped else ""
            problems.append(f"{claim.where}: nothing to compare for {', '.join(missing)}{seen}")
        cases += judge(claim.where, pairs, claim.bound)
    return Outcome(
        name=scenario.name,
        title=scenario.title,
        background=f"{scenario.experiment}, {scenario.background}",
        bound=plan.claims[0].bound,
        cases=tuple(cases),
        problems=tuple(problems),
        run_dir=out.name,
    )


def _spec(scenario: Scenario, plan: Plan, out: Path) -> RunSpec:
    request = TraceRequest(
        experiment=parse_experiment(scenario.experiment, profile_names()),
        baseline=None,
        rounds=len(scenario.sizes),
        clients=CLIENTS,
        dataset="digits",
        data_dir=None,
        out=out,
        reconnect=scenario.reconnect,
    )
    return spec_of(
        request,
        offloads=scenario.offloads,
        profile=plan.profile,
        environment=_SHORT_TRAINING | dict(plan.environment),
    )


def server_port(server: Pod, processes: Processes) -> int:
    """Where other pods reach the server, by the sockets that it has open, as the agent finds it.

    :raises ZtprobeError: there is no such port, or there are several: a cost is put on one.
    """
    seen = topology([server], pod_sockets([server], processes, SocketTables()))
    ports = sorted({int(one["port"]) for one in seen["endpoints"] if one["reachable"]})
    if len(ports) != 1:
        found = ", ".join(map(str, ports)) or "none"
        raise ZtprobeError(f"{server.name} listens for other pods at {found}; expected one port")
    return ports[0]


class _Injection:
    """An `Interference`: the plan's injectors and the capture, from before the clients start."""

    def __init__(self, scenario: Scenario, plan: Plan, out: Path) -> None:
        self._scenario = scenario
        self._plan = plan
        self.captures = files.unguessable(out, "capture")
        # Not below the directory of runs' journals, where an unknown entry counts as left behind.
        self.state_dir = files.unguessable(out, "state")
        self.capture: Capture | None = None
        self.notes: list[Note] = []
        self.problems: list[str] = []

    def prepare(self, runtime: Runtime) -> None:
        """See `Interference`: costs come later."""

    @contextlib.contextmanager
    def during(self, runtime: Runtime) -> Iterator[None]:
        pods = (runtime.server, *runtime.clients)
        if missing := {SERVER, TARGET, OTHER} - {pod.name for pod in pods}:
            there = ", ".join(pod.name for pod in pods)
            raise ZtprobeError(
                f"{self._scenario.name}: a cost is put on {min(missing)}, and the run has {there}"
            )
        logs = {pod.name: runtime.source.log(pod, runtime.applications[pod.name]) for pod in pods}
        follower = Follower(logs)
        for directory in (self.captures, self.state_dir):
            files.make_directory(directory, 0o700)
        port = server_port(runtime.server, runtime.source.processes([runtime.server]))
        scene = Scene(runtime=runtime, server_port=port, follower=follower, state_dir=self.state_dir)
        loopback_ports = {pod.name: runtime.loopback_port(pod.name) for pod in pods}
        self.capture = Capture(pods, port, loopback_ports, self.captures, whole=self._plan.whole)
        try:
            with self.capture, contextlib.ExitStack() as stack:
                for injector in self._plan.injectors:
                    stack.enter_context(injector(scene))
                stack.enter_context(follower)
                yield
        except OSError as error:
            raise ZtprobeError(f"{self._scenario.name}: the cost could not be injected: {error}") from error
        finally:
            self.notes, self.problems = scene.notes, scene.problems
