"""Can this machine do the job, and by which hooks? Asked before anything starts.

``features`` asks the machine and yields plain values, ``signals`` and ``requirements``
judge them. Nothing here changes the machine.
"""

from ztprobe.preflight.features import KernelFeatures, Machine, Tools, collect
from ztprobe.preflight.requirements import (
    check_main_job,
    delay_backend,
    machine_problems,
    out_problems,
    rate_backend,
)
from ztprobe.preflight.signals import SignalHook, choose_hooks
from ztprobe.preflight.trials import NetworkTrials

__all__ = (
    "KernelFeatures",
    "Machine",
    "NetworkTrials",
    "SignalHook",
    "Tools",
    "check_main_job",
    "choose_hooks",
    "collect",
    "delay_backend",
    "machine_problems",
    "out_problems",
    "rate_backend",
)
