"""CPUs that two things which run at the same time have each for itself. Standard library only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from ztprobe.cpu_numbers import cpu_words
from ztprobe.errors import PreflightError

__all__ = ("halves", "stay_on")

_CPUS = Path("/sys/devices/system/cpu")
_SIBLINGS = "topology/thread_siblings_list"


def halves(
    cpus: Sequence[int] | None = None, topology: Path = _CPUS
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two sets of CPUs of equal size that share no core; a core is never divided between them.

    :param cpus: to be divided; None: those that this process may use.
    :param topology: which CPUs are threads of one core (``/sys/devices/system/cpu``).
    :raises PreflightError: there are fewer than two cores.
    """
    there = sorted(os.sched_getaffinity(0)) if cpus is None else sorted(cpus)
    cores = sorted({tuple(one for one in _siblings(cpu, topology) if one in there) for cpu in there})
    each = len(cores) // 2
    if not each:
        raise PreflightError(
            f"two runs at once need two cores, one for each, and there is one here ({cpu_words(there)}): run"
            " them one after the other, without --duet"
        )
    # Where cores have a different number of threads, or their number is odd, one may be left idle.
    first, second = (
        tuple(sorted(cpu for core in part for cpu in core)) for part in (cores[:each], cores[each : 2 * each])
    )
    least = min(len(first), len(second))
    return first[:least], second[:least]


def _siblings(cpu: int, topology: Path) -> tuple[int, ...]:
    """The CPUs of its core, itself among them; it alone where the kernel does not say."""
    try:
        text = (topology / f"cpu{cpu}" / _SIBLINGS).read_text().strip()
    except OSError:
        return (cpu,)
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    return tuple(found)


def stay_on(cpus: Sequence[int]) -> None:
    """Keep this process, and all that it starts from now on, on these CPUs.

    :raises OSError: none of them is there.
    """
    for thread in os.listdir("/proc/self/task"):  # libraries begin some as they are imported
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cpus)
