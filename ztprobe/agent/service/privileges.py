"""What an agent cannot do for want of a capability, said when it starts and in its status."""

from __future__ import annotations

import platform
import re
from pathlib import Path

__all__ = ("lacking",)

_STATUS = Path("/proc/self/status")
# Since Linux 5.11 maps are accounted to memory cgroups and no longer to RLIMIT_MEMLOCK.
_UNLIMITED_MAPS = (5, 11)
# include/uapi/linux/capability.h: number, name, what it is for here.
_NEEDED = (
    (12, "CAP_NET_ADMIN", "no programs and no profiles on pods' interfaces"),
    (19, "CAP_SYS_PTRACE", "pods whose processes are not root's are not found"),
    (21, "CAP_SYS_ADMIN", "pods' network namespaces cannot be entered"),
    (_SYS_RESOURCE := 24, "CAP_SYS_RESOURCE", "no maps on kernels before 5.11, as this one is"),
    (34, "CAP_SYSLOG", "the kernel functions in which packets are dropped have no names"),
    (38, "CAP_PERFMON", "no programs on tracepoints"),
    (39, "CAP_BPF", "no programs at all"),
)


def lacking(status: Path = _STATUS, kernel: str | None = None) -> list[str]:
    """What is lost, a line for each capability that a process does not have and this kernel asks for.

    :param status: its file in /proc.
    :param kernel: its release; None: the running one's.
    """
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("CapEff:"))
    effective = int(line.partition(":")[2], 16)
    release = re.findall(r"\d+", kernel or platform.release())
    unneeded = {_SYS_RESOURCE} if tuple(map(int, release[:2])) >= _UNLIMITED_MAPS else set()
    return [
        f"without {name}: {lost}"
        for number, name, lost in _NEEDED
        if not effective >> number & 1 and number not in unneeded
    ]
