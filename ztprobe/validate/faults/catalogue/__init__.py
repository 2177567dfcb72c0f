"""Every cause that this machine can produce, in its variants, and those that it cannot."""

from __future__ import annotations

from ztprobe.validate.faults.catalogue import application, emulation, policy, resources, tls
from ztprobe.validate.faults.catalogue.left_out import LEFT_OUT
from ztprobe.validate.faults.model import Fault

__all__ = ("FAULTS", "LEFT_OUT")

FAULTS: tuple[Fault, ...] = (
    *policy.FAULTS,
    *tls.FAULTS,
    *resources.FAULTS,
    *emulation.FAULTS,
    *application.FAULTS,
)
