"""What others say of a run with a fault in it: packet filter, counters of the kernel, containers' logs.

The text is for a person and for the pattern by which a variant shows; the diagnosis never sees it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ztprobe.errors import ZtprobeError
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.runtime.interface import Runtime
from ztprobe.runtime.local import cgroups, firewall

__all__ = ("observed_at_end", "said_in_logs")

_NETSTAT, _SNMP = Path("/proc/net/netstat"), Path("/proc/net/snmp")
_COUNTERS = (
    "ListenOverflows",
    "ListenDrops",
    "TCPReqQFullDrop",
    "TCPReqQFullDoCookies",
    "TCPAbortOnTimeout",
    "TCPTimeouts",
    "TCPRcvQDrop",
    "PruneCalled",
    "RcvPruned",
    "TCPWantZeroWindowAdv",
    "TCPToZeroWindowAdv",
    "TCPMTUPFail",
    "OutRsts",
    "AttemptFails",
    "RetransSegs",
    "EstabResets",
)
_MOST_LINES = 40


def observed_at_end(runtime: Runtime) -> list[str]:
    """While the pods still exist: dropped flows, counters that are not zero, processes out of memory."""
    pods = runtime.pods
    return [
        *_dropped(runtime, pods),
        *(line for pod in pods for line in _counters(pod)),
        *_throttled(runtime.server.run),
    ]


def _dropped(runtime: Runtime, pods: Sequence[Pod]) -> Iterator[str]:
    names = {pod.address: pod.name for pod in pods}
    # There is no such table where no policy is.
    with contextlib.suppress(ZtprobeError, OSError):
        for flow, packets in sorted(firewall.dropped(runtime.server.node_netns).items()):
            source, target = (names.get(address, address) for address in (flow.source, flow.destination))
            yield f"policy dropped {source} -> {target} {flow.protocol}/{flow.port}: {packets} packets"


def _counters(pod: Pod) -> Iterator[str]:
    with contextlib.suppress(OSError), entered(pod.netns):
        for file in (_NETSTAT, _SNMP):
            lines = [line.split() for line in file.read_text().splitlines()]
            for names, values in zip(lines[::2], lines[1::2], strict=True):
                for name, value in zip(names[1:], values[1:], strict=True):
                    if name in _COUNTERS and value != "0":
                        yield f"{pod.name} counts {name}: {value}"


def _throttled(run: str) -> Iterator[str]:
    # Of containers that have ended, too: their cgroups stay as long as the run.
    for root in cgroups.detect().roots:
        for file in sorted((root / f"ztp-{run}").glob("*/*/cpu.stat")):
            with contextlib.suppress(OSError):
                for line in file.read_text().splitlines():
                    if line.startswith("nr_throttled ") and not line.endswith(" 0"):
                        yield f"{file.parent.parent.name}/{file.parent.name} was throttled: {line}"


def said_in_logs(directory: Path) -> list[str]:
    """The last lines of every container's log that are no events of the workload's."""
    found = []
    for file in sorted(directory.glob("*")):
        if not file.is_file() or file.name in ("agent.log", "runtime.log"):
            continue
        lines = file.read_text(errors="replace").splitlines()
        said = [line for line in lines if not line.startswith('{"event"')]
        found += [f"{file.stem} said: {line}" for line in said[-_MOST_LINES:]]
    return found
