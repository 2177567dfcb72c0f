"""What pods and their containers have run into so far, by the kernel's own counters.

Events say what happened to packets; that a process was killed for want of memory, stopped by its CPU
limit, or has no descriptor left, only counters tell. A sample is cheap (about 0.2 ms a pod) and taken
every few seconds, so what a run keeps of them is small. A container's cgroup is remembered
while one of its processes lives, because the kernel's word on why it ended is read afterwards.

Of a pod: ``listen_overflows`` and ``listen_drops`` (connections lost at a full accept queue),
``syn_queue_full``, ``receive_pruned`` and ``receive_dropped`` (segments lost at a full receive buffer),
``closed_windows`` (how often a receiver had to say that it takes nothing more), ``sockets`` and
``ephemeral_ports`` (how many there are); of its node's namespace, which tracks connections,
``conntrack_entries``, ``conntrack_most`` and ``conntrack_dropped`` (packets for which there was no room). Of
a container: ``oom_kills``, ``throttled_periods``, ``throttled_ns``, ``memory_bytes`` and
``memory_limit_bytes``, ``descriptors`` and ``descriptor_limit`` of its process that is closest to its
limit, ``stopped`` (a signal has stopped it), ``cpu_ns``, ``full_filesystems``. What a kernel does not tell is
left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.pods.source import Processes
from ztprobe.process.procfs import text_of

__all__ = ("PodCounters",)

_OPEN_FILES = re.compile(r"(?m)^Max open files\s+(\d+)")
_NET = "/proc/thread-self/net"  # of the calling thread's namespace; /proc/net is the first thread's
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_OF_TCP = {
    "ListenOverflows": "listen_overflows",
    "ListenDrops": "listen_drops",
    "TCPReqQFullDrop": "syn_queue_full",
    "PruneCalled": "receive_pruned",
    "TCPRcvQDrop": "receive_dropped",
    "TCPToZeroWindowAdv": "closed_windows",
}
# cgroup file -> what is read from it, by version
_UNLIMITED_BYTES = 1 << 62
_PLACES = ("", "tmp", "run")  # where containers write
_BELOW_BYTES = 4096


class PodCounters:
    """Reads them; remembers where containers' cgroups are."""

    def __init__(self, mounts: Path = Path("/proc/self/mounts")) -> None:
        self._mounts = _controllers(mounts)
        self._cgroups: dict[str, tuple[Path, ...]] = {}  # POD/CONTAINER -> files

    def sample(self, pods: Iterable[Pod], processes: Processes) -> dict[str, Any]:
        """Now, for run.json; a pod or a process that has gone meanwhile is left out."""
        self.remember(processes)
        containers: dict[str, dict[str, Any]] = {
            name: _cgroup_counters(files) for name, files in self._cgroups.items()
        }
        for pid, who in processes.items():
            with contextlib.suppress(OSError, ValueError, IndexError):
                _merge(containers.setdefault("/".join(who), {}), _process_counters(pid))
        found: dict[str, dict[str, int]] = {}
        nodes: dict[Path, dict[str, int]] = {}  # pods of one node share what its namespace counts
        for pod in pods:
            with contextlib.suppress(OSError):
                if pod.node_netns not in nodes:
                    nodes[pod.node_netns] = _node_counters(pod.node_netns)
                found[pod.name] = _pod_counters(pod) | nodes[pod.node_netns]
        return {"at_ns": time.monotonic_ns(), "pods": found, "containers": containers}

    def remember(self, processes: Processes) -> None:
        """Look up the cgroups of containers that are new."""
        for pid, (pod, container) in processes.items():
            name = f"{pod}/{container}"
            if name not in self._cgroups and (places := tuple(self._places(pid))):
                self._cgroups[name] = tuple(_files_of(places))

    def _places(self, pid: int) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                for wanted in controllers.split(","):
                    if wanted in self._mounts and path != "/":
                        yield self._mounts[wanted] / path.lstrip("/")


def _controllers(mounts: Path) -> dict[str, Path]:
    """Controller ("" for version 2) -> where it is mounted; those that tell something."""
    found: dict[str, Path] = {}
    for line in mounts.read_text(errors="replace").splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            found.setdefault("", Path(where))
        elif kind == "cgroup":
            for controller in ("memory", "cpu"):
                if controller in options.split(","):
                    found.setdefault(controller, Path(where))
    return found


def _files_of(places: Iterable[Path]) -> Iterator[Path]:
    """Those that tell something; which are there depends on the controllers."""
    for place in places:
        for file in (*_CGROUP_FILES, *_CGROUP_VALUES):
            if (place / file).exists():
                yield place / file


def _cgroup_counters(files: Iterable[Path]) -> dict[str, int]:
    found: dict[str, int] = {}
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            text = text_of(file)
            if (name := _CGROUP_VALUES.get(file.name)) is not None:
                if (value := int(text)) < _UNLIMITED_BYTES:
                    found[name] = value
                continue
            said = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
            names = _CGROUP_FILES[file.name]
            found |= {name: int(said[key]) * factor for key, name, factor in names if key in said}
    return found


_CGROUP_FILES: Mapping[str, tuple[tuple[str, str, int], ...]] = {
    "memory.events": (("oom_kill", "oom_kills", 1),),
    "memory.oom_control": (("oom_kill", "oom_kills", 1),),
    "cpu.stat": (
        ("nr_throttled", "throttled_periods", 1),
        ("throttled_usec", "throttled_ns", 1000),  # version 2
        ("throttled_time", "throttled_ns", 1),  # version 1
    ),
}
_CGROUP_VALUES = {
    "memory.current": "memory_bytes",
    "memory.usage_in_bytes": "memory_bytes",
    "memory.max": "memory_limit_bytes",
    "memory.limit_in_bytes": "memory_limit_bytes",
}


def _process_counters(pid: int) -> dict[str, Any]:
    here = f"/proc/{pid}"
    fields = text_of(f"{here}/stat").rpartition(")")[2].split()
    limit = _OPEN_FILES.search(text_of(f"{here}/limits"))
    return {
        "stopped": fields[0] in "Tt",
        "cpu_ns": (int(fields[11]) + int(fields[12])) * _TICK_NS,
        "descriptors": len(os.listdir(f"{here}/fd")),
        **({"descriptor_limit": int(limit[1])} if limit else {}),
        "full_filesystems": [f"/{place}" for place in _PLACES if _is_full(f"{here}/root/{place}")],
    }


def _merge(into: dict[str, Any], process: dict[str, Any]) -> None:
    # Of a container's processes, what is closest to its limit, stopped at all, used together.
    into["stopped"] = into.get("stopped", False) or process["stopped"]
    into["cpu_ns"] = into.get("cpu_ns", 0) + process["cpu_ns"]
    into["full_filesystems"] = sorted({*into.get("full_filesystems", ()), *process["full_filesystems"]})

    def used(one: Mapping[str, Any]) -> float:
        return int(one.get("descriptors", 0)) / max(1, int(one.get("descriptor_limit", 1 << 30)))

    if used(process) >= used(into):
        into |= {name: process[name] for name in ("descriptors", "descriptor_limit") if name in process}


def _is_full(place: str) -> bool:
    status = os.statvfs(place)
    return bool(status.f_blocks) and status.f_bavail * status.f_frsize < _BELOW_BYTES


def _pod_counters(pod: Pod) -> dict[str, int]:
    with entered(pod.netns):
        found = _tcp_counters()
        found["sockets"] = _sockets_in_use()
        low, high = map(int, text_of("/proc/sys/net/ipv4/ip_local_port_range").split())
        found["ephemeral_ports"] = high - low + 1
    return found


def _node_counters(netns: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    with entered(netns):
        for file, name in (("count", "conntrack_entries"), ("max", "conntrack_most")):
            with contextlib.suppress(OSError, ValueError):
                found[name] = int(text_of(f"/proc/sys/net/netfilter/nf_conntrack_{file}"))
        with contextlib.suppress(OSError, ValueError):
            found["conntrack_dropped"] = _conntrack_dropped()
    return found


def _conntrack_dropped() -> int:
    # A line of names, then one of hexadecimal numbers for each CPU.
    names, *cpus = text_of(f"{_NET}/stat/nf_conntrack").splitlines()
    column = names.split().index("drop")
    return sum(int(line.split()[column], 16) for line in cpus)


def _tcp_counters() -> dict[str, int]:
    lines = text_of(f"{_NET}/netstat").splitlines()
    found: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        said = dict(zip(names.split(), values.split(), strict=False))
        found |= {name: int(said[key]) for key, name in _OF_TCP.items() if key in said}
    return found


def _sockets_in_use() -> int:
    # "TCP: inuse 3 orphan 0 tw 2 alloc 9 mem 4": those in TIME_WAIT hold their port too
    for line in text_of(f"{_NET}/sockstat").splitlines():
        if line.startswith("TCP:"):
            words = line.split()
            return int(words[words.index("inuse") + 1]) + int(words[words.index("tw") + 1])
    return 0
