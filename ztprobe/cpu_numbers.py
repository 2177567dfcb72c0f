"""Numbers of CPUs for people. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ("cpu_words",)


def cpu_words(cpus: Sequence[int]) -> str:
    """``CPU 3``, ``CPUs 0-3``, ``CPUs 0-1 and 4-5``."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    said = [f"{low}" if low == high else f"{low}-{high}" for low, high in ranges]
    noun = "CPU" if len(cpus) == 1 else "CPUs"
    return f"{noun} {said[0]}" if len(said) == 1 else f"{noun} {', '.join(said[:-1])} and {said[-1]}"
