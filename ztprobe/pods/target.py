"""What emulation has to know of a pod; `ztprobe.runtime.interface.Pod` is one.

A protocol of its own, because the runtime stands above this layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

__all__ = ("Target",)


class Target(Protocol):
    """A pod whose egress a profile acts on."""

    @property
    def name(self) -> str:
        """For messages and records."""

    @property
    def address(self) -> str:
        """IPv4."""

    @property
    def netns(self) -> Path:
        """Its network namespace."""

    @property
    def interface(self) -> str:
        """Inside that namespace: eth0."""
