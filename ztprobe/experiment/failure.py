"""The last line of a run that failed and is kept."""

from __future__ import annotations

from pathlib import Path

__all__ = ("why_failed",)


def why_failed(run_dir: Path) -> str:
    """The first cause of a saved run, and where to read more."""
    from analysis.causes.diagnosis import top_cause

    if (found := top_cause(run_dir)) is not None:
        return f"{found}: `ztprobe diagnose {run_dir}`"
    return f"what was seen of it is in {run_dir}, for `ztprobe diagnose`"
