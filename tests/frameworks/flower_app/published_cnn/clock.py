"""The app's own clock, which the tests hold the tracer's figures against. The tracer never reads it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


def note(directory: str, event: str, **facts: Any) -> None:
    """Append one event, with both clocks, to this process's file in ``directory``; empty: do nothing."""
    unix_ns, monotonic_ns = time.time_ns(), time.monotonic_ns()
    if not directory:
        return
    line = {
        "event": event,
        **facts,
        "time_unix_ns": unix_ns,
        "time_monotonic_ns": monotonic_ns,
        "pid": os.getpid(),
    }
    with (Path(directory) / f"clock-{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
