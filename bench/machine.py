"""What a bench ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

__all__ = ("machine_facts",)


def machine_facts() -> dict[str, Any]:
    """Kernel, processor, cores, load and Python."""
    models = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "kernel": platform.release(),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count() or 1,
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
    }
