"""Runs that several tests look at, each traced once a session, the first time somebody asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from analysis.ledger.ledger import build_ledger
from analysis.ledger.model import Ledger
from tests.e2e.command import Outcome, run
from tests.e2e.fl_processes import parent, start
from ztprobe.rundir.store import Run, load_run

__all__ = ("parent", "start")

CLIENTS = 3
# Short rounds are cheap, and medians want some; under 80 ms a round takes ten seconds.
_OPTIONS = {
    "net0-sec0": ("--rounds", "4"),
    "net0-sec3": ("--rounds", "4", "--json"),
    "net2-sec0": ("--rounds", "3", "--no-baseline"),
    "net2-sec3": ("--rounds", "3", "--no-baseline"),
    "net2-sec3 --reconnect": ("--rounds", "2", "--no-baseline"),
    "net3-sec0": ("--rounds", "2", "--no-baseline"),
    "net5-sec0": ("--rounds", "1", "--no-baseline"),
    "net0-sec0 --fl-secure-aggregation masks": ("--rounds", "3", "--no-baseline"),
    "net0-sec1 --fl-edges 2 --fl-compression int8": ("--rounds", "3", "--no-baseline"),
    "net0-sec0 --fl-client synthetic --fl-compression top-k": ("--rounds", "3"),
    "net0-sec0 --fl-client synthetic --fl-synthetic-compute-ms 1500": ("--rounds", "3", "--no-baseline"),
}


@dataclass(frozen=True)
class Traced:
    """A finished ``ztprobe trace``: what it printed, what it left, and the ledger of that."""

    name: str
    outcome: Outcome
    path: Path
    report: dict[str, Any] = field(repr=False)

    @cached_property
    def run(self) -> Run:
        return load_run(self.path)

    @cached_property
    def ledger(self) -> Ledger:
        return build_ledger(self.run)


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Traced]:
    """``traced("net2-sec3 --reconnect")``: that experiment with few clients and rounds."""
    found: dict[str, Traced] = {}
    failed: dict[str, str] = {}  # not worth half a minute for every test that asks again

    def get(name: str) -> Traced:
        if name in failed:
            pytest.fail(f"{name} has failed before: {failed[name]}", pytrace=False)
        if name not in found:
            experiment, *flags = name.split()
            out = tmp_path_factory.mktemp("traced") / "run"
            failed[name] = "it did not end"
            outcome = run(
                *("trace", "--experiment", experiment, "--out", out),
                *("--clients", str(CLIENTS), *_OPTIONS[name], *flags),
            )
            failed[name] = outcome.stderr.strip().rpartition("\n")[2]
            assert outcome.status == 0, outcome.stderr
            report = json.loads((out / "report.json").read_text())
            found[name] = Traced(name, outcome, out, report)
            del failed[name]
        return found[name]

    return get
