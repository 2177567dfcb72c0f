"""Schedules and profile files with one, for the tests of what reads and follows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ztprobe.profile.schedule import Schedule, Step

S = 10**9
HEAD = "name: x\ndescription: d\n"


def every(seconds: float, *values: dict[str, Any], repeat: bool = False) -> Schedule:
    """One step every ``seconds``."""
    steps = tuple(Step(at_ns=round(i * seconds * S), **value) for i, value in enumerate(values))
    return Schedule(steps=steps, period_ns=round(len(steps) * seconds * S) if repeat else None)


def write_profile(tmp_path: Path, text: str, trace: str | None = None) -> Path:
    """A profile file of ``text`` with its sources, beside the trace file ``t.csv`` if there is one."""
    if trace is not None:
        (tmp_path / "t.csv").write_text(trace)
    path = tmp_path / "p.yaml"
    path.write_text(f"{HEAD}{text}\nsource: {{schedule: me, delay_ms: me, jitter_ms: me, loss_pct: me}}\n")
    return path
