"""A run that goes on, as far as it has been seen, for commands that did not start it.

The job writes ``/run/ztprobe/RUN/so_far.json``, readable by root alone, every few seconds and when it
notices a stall: what run.json would say now, and where the events and logs are. The events are in the batches
that the agent writes anyway. Both together are a `Run` like a saved one, so that the same analysis reads it;
the directory goes when the run ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztprobe import paths
from ztprobe.agent.interface import Account
from ztprobe.agent.machine_load import COLUMNS
from ztprobe.errors import UsageError, WorkloadError
from ztprobe.experiment.record import described, kernel_drop_reasons, owners_of, pod_record, tables_in
from ztprobe.experiment.stall_watch import workload_pods
from ztprobe.probes.kallsyms import Kallsyms
from ztprobe.rundir import files
from ztprobe.rundir.batches import BATCHES_DIR
from ztprobe.rundir.clock import take_sample
from ztprobe.rundir.logs import read_events
from ztprobe.rundir.store import Run

if TYPE_CHECKING:
    import pandas as pd

    from ztprobe.experiment.run import Job
    from ztprobe.runtime.interface import Runtime

__all__ = ("FILE", "RunSoFar", "publish_so_far", "runs_going_on")

FILE = "so_far.json"
_SAMPLES = 60  # of counters: the first one and so many of the last
_MACHINE_ROWS = 240  # two minutes
_TRIES = 5  # a file of events may be replaced by tables at this moment
_AGAIN_S = 0.05


def publish_so_far(job: Job, runtime: Runtime, hooks: Mapping[str, str], machine: pd.DataFrame) -> None:
    """Write down what is known of a run by now; that it cannot be written ends no run.

    :param machine: what else the machine has done (`ztprobe.agent.machine_load`).
    """
    pods = workload_pods(runtime)
    counters = job.meta["pod_counters"]
    meta = job.meta | described(job.spec)
    meta |= {
        "hooks": dict(hooks),
        "loss": {},
        "clock_samples": job.clock_samples,
        "facts": runtime.facts(),
        "pods": [pod_record(pod) for pod in runtime.pods],
        "pod_counters": [*counters[:1], *counters[1:][-_SAMPLES:]],
        "stalls": [stall.as_dict() for stall in job.stalls],
    }
    content = {
        "at_ns": time.monotonic_ns(),
        "directory": str(job.target.path),
        "server": runtime.server.name,
        "logs": {pod.name: str(runtime.source.log(pod, runtime.applications[pod.name])) for pod in pods},
        "owners": owners_of(runtime.pods, job.processes),
        "machine": json.loads(machine.tail(_MACHINE_ROWS).to_json(orient="split", index=False)),
        "meta": meta,
    }
    with contextlib.suppress(OSError):
        files.write_whole(paths.STATE_DIR / job.run_id / FILE, json.dumps(content).encode(), mode=0o600)


def runs_going_on() -> list[str]:
    """The runs that have told something of themselves, and have not ended."""
    return sorted(file.parent.name for file in paths.STATE_DIR.glob(f"*/{FILE}"))


class RunSoFar:
    """A run that goes on, read again and again.

    :param name: as the state directory has it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.told_s = 0.0  # CLOCK_MONOTONIC: when the run last told something of itself
        self._file = paths.STATE_DIR / name / FILE
        self._symbols = Kallsyms()
        self._reasons: dict[str, str] | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return not self._file.exists()

    def pause(self, seconds: float) -> None:
        """Wait; it is written down meanwhile by whoever runs it."""
        time.sleep(seconds)

    def read(self) -> Run:
        """What there is now; ``meta`` has ``so_far``, and no end.

        :raises UsageError: it has ended, or tells nothing.
        """
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_AGAIN_S)
            with contextlib.suppress(OSError, ValueError, KeyError):
                return self._read(json.loads(self._file.read_text()))
        raise UsageError(f"run {self.name}: has ended, or has told nothing of itself yet")

    def _read(self, content: Mapping[str, Any]) -> Run:
        self.told_s = content["at_ns"] / 1e9
        directory = Path(content["directory"])
        if self._reasons is None:
            self._reasons = kernel_drop_reasons()
        account = Account(drop_reasons=self._reasons)
        events = tables_in(directory / BATCHES_DIR, account, content["owners"], self._symbols.name_of)
        events["machine"] = _machine(content["machine"])
        logs = {pod: _events(Path(log)) for pod, log in content["logs"].items()}
        server = content["server"]
        sample = dataclasses.asdict(take_sample())
        meta = content["meta"] | {"so_far": {"at_ns": sample["time_monotonic_ns"]}}
        meta["clock_samples"] = [*meta["clock_samples"], sample]
        clients = [event for pod, found in logs.items() if pod != server for event in found]
        return Run(path=directory, meta=meta, rounds=logs[server], clients=clients, events=events)


def _machine(told: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(told["data"], columns=told["columns"]).astype(COLUMNS)


def _events(log: Path) -> list[dict[str, Any]]:
    try:
        return read_events(log)
    except WorkloadError:  # half a line of a process that was killed
        return []
