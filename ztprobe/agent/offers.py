"""What a node offers, for who asks its agent: hooks, signal by signal, and what can emulate a network."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

from ztprobe.preflight import choose_hooks
from ztprobe.preflight.features import collect_kernel

__all__ = ("node_offers",)


@cache
def node_offers() -> dict[str, Any]:
    """Tried once (0.2 s): a kernel stays as it is while its node runs.

    :returns: ``kernel``, ``cgroups``, ``signals`` (`SignalHook` as dicts), and what a profile on running
        pods would use for ``delay`` (jitter and loss, too) and ``rate``; None: nothing could.
    """
    kernel = collect_kernel()
    network = kernel.network
    return {
        "kernel": kernel.release,
        "cgroups": kernel.cgroup_layout,
        "signals": [asdict(hook) for hook in choose_hooks(kernel)],
        # The delay line is for the local runtime's pods: it stands where their node forwards.
        "delay": "netem" if network.netem else None,
        "rate": next((name for name in ("tbf", "netem") if getattr(network, name)), None),
    }
