"""The pods' TCP: the same on every machine where it can be, and recorded where it cannot."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ztprobe.errors import PreflightError
from ztprobe.rundir import state
from ztprobe.runtime.local import network
from ztprobe.runtime.local.journal import Journal

__all__ = ("check", "choose", "recorded")

_IPV4 = Path("/proc/sys/net/ipv4")
_ALLOWED = _IPV4 / "tcp_allowed_congestion_control"
_AVAILABLE = _IPV4 / "tcp_available_congestion_control"
# Each of them shifts a transfer's duration.
_RECORDED = (
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_no_metrics_save",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_limit_output_bytes",
    "net.core.rmem_max",
    "net.core.wmem_max",
)


def check(congestion_control: str) -> None:
    """:raises PreflightError: this kernel does not have it, or pods may not be allowed it from here."""
    available = _AVAILABLE.read_text().split()
    if congestion_control not in available:
        raise PreflightError(
            f"this kernel has no congestion control {congestion_control}, only {', '.join(available)}:"
            f" modprobe tcp_{congestion_control}"
        )
    allowed = _ALLOWED.read_text().split()
    # Only the machine's first network namespace may change the list; a container has another.
    if congestion_control not in allowed and not os.access(_ALLOWED, os.W_OK):
        raise PreflightError(
            f"pods may not use the congestion control {congestion_control}, and {_ALLOWED} cannot be written"
            f" from this network namespace: on the machine itself, run sysctl"
            f" net.ipv4.tcp_allowed_congestion_control='{' '.join([*allowed, congestion_control])}'"
        )


def choose(journal: Journal, namespaces: Sequence[Path], congestion_control: str) -> None:
    """Have connections in these namespaces use it, and start without what earlier ones learned.

    A namespace may only choose what the machine's list allows, but keeps its choice: so the
    list is longer for these few milliseconds, and then as it was.
    """
    with state.locked():
        allowed = _ALLOWED.read_text().split()
        if congestion_control in allowed:
            _write(namespaces, congestion_control)
            return
        with journal.setting(_ALLOWED, " ".join([*allowed, congestion_control])):
            _write(namespaces, congestion_control)


def _write(namespaces: Sequence[Path], congestion_control: str) -> None:
    for netns in namespaces:
        network.write_sysctl(netns, "net.ipv4.tcp_congestion_control", congestion_control)
        # Otherwise a connection starts with what an earlier one to the same address has
        # learned, and the second run of two differs from the first.
        network.write_sysctl(netns, "net.ipv4.tcp_no_metrics_save", "1")


def recorded(netns: Path) -> dict[str, str | None]:
    """The settings that shape transfers, as they are inside a namespace; None: not known there."""
    return {name: network.read_sysctl(netns, name) for name in _RECORDED}
