"""How far it goes with more clients: mostly synthetic ones, which send the same messages and train nothing.

One short run for each number of clients, analysed as every run is. Memory is what the workload's
processes hold by themselves or share (PSS), sampled while they run, at its most; the server holds
every update of a round.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scipy import optimize

from analysis.report.report import write_report
from ztprobe.experiment.names import parse_experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.experiment.run import run
from ztprobe.experiment.spec import spec_of
from ztprobe.profile.model import profile_names
from ztprobe.progress import Progress, QuietProgress
from ztprobe.rundir.store import create_run_dir
from ztprobe.rundir.temporary import scratch
from ztprobe.runtime.interface import Runtime

__all__ = ("ClientsResult", "growth_of", "measure_clients", "measure_sizes")

_EXPERIMENT, _ROUNDS = "net0-sec0", 3
_SYNTHETIC = {"client": "synthetic", "synthetic_compute_ms": 20.0}
_SAMPLE_S = 0.3
_LEAST_POWER, _MOST_POWER = 0.01, 6.0


@dataclass(frozen=True, kw_only=True)
class ClientsResult:
    """One run with so many clients."""

    clients: int
    round_s: float  # median
    residual_share: float
    events: int
    lost: int
    memory_bytes: int  # of server and clients together, at its most
    run_bytes: int
    report_bytes: int
    analysis_s: float


@dataclass
class _Memory:
    """Samples the workload's memory while the rounds go on."""

    most_bytes: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def prepare(self, runtime: Runtime) -> None:
        """See `Interference`."""

    @contextlib.contextmanager
    def during(self, runtime: Runtime) -> Iterator[None]:
        sampler = threading.Thread(target=self._sample, args=(runtime,))
        sampler.start()
        try:
            yield
        finally:
            self._ended.set()
            sampler.join()

    def _sample(self, runtime: Runtime) -> None:
        pods = (runtime.server, *runtime.edges, *runtime.clients)
        while not self._ended.wait(_SAMPLE_S):
            self.most_bytes = max(self.most_bytes, sum(map(_pss_bytes, runtime.source.processes(pods))))


def _pss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def measure_clients(clients: int, fl: Mapping[str, Any] = _SYNTHETIC) -> ClientsResult:
    """Run, watch and analyse a workload of so many clients.

    :param fl: the workload's options, by name; those of PyTorch clients are empty.
    :raises ZtprobeError: it could not be set up, or failed on the way.
    """
    with scratch() as directory:
        path = directory / "run"
        request = TraceRequest(
            experiment=parse_experiment(_EXPERIMENT, profile_names()),
            baseline=None,
            rounds=_ROUNDS,
            clients=clients,
            dataset="digits",
            data_dir=None,
            out=path,
            reconnect=False,
            fl=dict(fl),
        )
        memory = _Memory()
        run(spec_of(request, offloads=True), create_run_dir(path), QuietProgress(), interference=memory)
        run_bytes = _size_bytes(path)
        write_report(path)  # a process' first one loads what it needs
        started_s = time.monotonic()
        report: dict[str, Any] = write_report(path)
        analysis_s = time.monotonic() - started_s
        return ClientsResult(
            clients=clients,
            round_s=report["duration"]["median_s"],
            residual_share=report["residual"]["median_share"],
            events=report["events_seen"],
            lost=sum(report["loss"].values()),
            memory_bytes=memory.most_bytes,
            run_bytes=run_bytes,
            report_bytes=sum(os.path.getsize(path / name) for name in ("report.json", "report.html")),
            analysis_s=analysis_s,
        )


def measure_sizes(quick: bool, progress: Progress) -> tuple[list[tuple[str, str, str]], dict[str, Any]]:
    """Several numbers of clients: what, value and goal of the table's rows, and the figures."""
    found = []
    sizes = (5, 20, 60) if quick else (5, 20, 60, 200)
    with progress.bar("  clients", len(sizes)) as advance:
        for clients in sizes:
            found.append(measure_clients(clients))
            advance(1)
    rows = [row for one in found for row in words_of(one)]
    figures = {"runs": [asdict(one) for one in found], "growth": growth_of(found)}
    return [*rows, growth_words(found)], figures


def words_of(found: ClientsResult) -> list[tuple[str, str, str]]:
    """What, value and goal of each row of the bench's table."""
    per_client = found.memory_bytes / (found.clients + 1) / 2**20
    return [
        (
            f"{found.clients} synthetic clients: a round",
            f"{found.round_s:.2f} s, residual {found.residual_share:.1%}, "
            f"lost {found.lost} of {found.events:,}",
            "0 lost; <= 5 % residual",
        ),
        (
            "  memory",
            f"{found.memory_bytes / 2**30:.2f} GiB, {per_client:.0f} MiB a process",
            "<= 12 GiB for 200",
        ),
        (
            "  analysis and report",
            f"{found.analysis_s:.2f} s, {found.analysis_s / found.clients * 1e3:.0f} ms a client",
            "",
        ),
        (
            "  size",
            f"{found.run_bytes / 1e6:.2f} MB of run, {found.report_bytes / 1e6:.2f} MB of report, "
            f"{found.report_bytes / found.clients / 1e3:.1f} kB a client",
            "",
        ),
    ]


def growth_of(found: Sequence[ClientsResult]) -> dict[str, float]:
    """With which power of the number of clients time and sizes grow, whatever is there without any client.

    1 is linear. Of three sizes value = fixed + factor * clients ** power has one solution; 0: no growth that
    can be told from noise.

    :param found: three sizes or more, rising; the smallest and the two largest count.
    """
    few, many, most = found[0], found[-2], found[-1]

    def power(start: float, before: float, last: float) -> float:
        def excess(exponent: float) -> float:
            small, large, largest = (one.clients**exponent for one in (few, many, most))
            return (largest - large) * (before - start) - (last - before) * (large - small)

        if before <= start or last <= before or excess(_LEAST_POWER) >= 0:
            return 0.0
        if excess(_MOST_POWER) <= 0:
            return _MOST_POWER
        return float(optimize.brentq(excess, _LEAST_POWER, _MOST_POWER))

    names = ("analysis_s", "report_bytes", "run_bytes", "events")
    return {name: power(*(float(getattr(one, name)) for one in (few, many, most))) for name in names}


def growth_words(found: Sequence[ClientsResult]) -> tuple[str, str, str]:
    """What, value and goal of the row that lays the sizes beside each other."""
    powers = growth_of(found)
    return (
        f"  from {found[0].clients} to {found[-1].clients} clients, as a power of their number",
        f"analysis {powers['analysis_s']:.2f}, report {powers['report_bytes']:.2f}, "
        f"run {powers['run_bytes']:.2f}, events {powers['events']:.2f}",
        "1 is linear",
    )


def _size_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
