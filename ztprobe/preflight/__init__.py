"""What this machine offers, and by which hooks. Asked before anything starts; nothing here changes it.

``features`` asks the machine and yields plain values, ``signals`` judges them;
``ztprobe.experiment.requirements`` says whether an experiment can run with them.
"""

from ztprobe.preflight.features import KernelFeatures, Machine, Tools, collect
from ztprobe.preflight.signals import SignalHook, choose_hooks
from ztprobe.preflight.trials import NetworkTrials

__all__ = (
    "KernelFeatures",
    "Machine",
    "NetworkTrials",
    "SignalHook",
    "Tools",
    "choose_hooks",
    "collect",
)
