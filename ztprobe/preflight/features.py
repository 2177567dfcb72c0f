"""What this machine offers: collected once, as plain values, by asking and not by version numbers.

Whatever has to be tried is tried in a network namespace that has no name and dies with
the thread that made it, so that nothing can be left behind. Without root nothing is tried,
and None says so.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from ztprobe.preflight.bpf import RAW_TRACEPOINT, can_attach_raw_tracepoint, trivial_program
from ztprobe.preflight.trials import NetworkTrials, run_network_trials

__all__ = (
    "RAW_TRACEPOINTS",
    "KernelFeatures",
    "Machine",
    "Tools",
    "collect",
    "collect_kernel",
    "collect_tools",
)

RAW_TRACEPOINTS = (
    "inet_sock_set_state",
    "kfree_skb",
    "sched_switch",
    "sock_recv_length",
    "sock_send_length",
    "tcp_retransmit_skb",
)

BINARIES = {
    "haproxy": ("-v",),
    "dnsmasq": ("--version",),
    "nft": ("--version",),
    "iptables": ("--version",),
    "ip": ("-V",),
    "ethtool": ("--version",),
}
# import name -> distribution name
MODULES = {
    "bcc": "bcc",
    "grpc": "grpcio",
    "pyroute2": "pyroute2",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "torchvision": "torchvision",
}

_BTF = Path("/sys/kernel/btf/vmlinux")
_KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")
_BRIDGE_SYSCTLS = Path("/proc/sys/net/bridge")
_CONGESTION_CONTROLS = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


@dataclass(frozen=True, kw_only=True)
class KernelFeatures:
    """What the running kernel offers; None: could not be tried without root."""

    release: str = ""
    root: bool = False
    btf: bool = False
    bpf: bool | None = None  # bpf(2) loads a raw tracepoint program
    # Those of RAW_TRACEPOINTS that can be attached to (as root) or that BTF describes.
    raw_tracepoints: frozenset[str] = frozenset()
    kprobes: bool = False
    drop_reasons: bool = False  # since 5.17
    network: NetworkTrials = field(default_factory=NetworkTrials)
    bridge_netfilter: bool = False
    congestion_controls: frozenset[str] = frozenset()
    cgroup_layout: str = ""  # v1 | v2 | hybrid (v1 with v2 beside it) | none


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Programs and Python modules, name -> version; None: missing, "": of unknown version."""

    binaries: Mapping[str, str | None] = field(default_factory=dict)
    modules: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """All that `ztprobe doctor` judges."""

    kernel: KernelFeatures
    tools: Tools


def collect() -> Machine:
    """Ask this machine (about 0.2 s as root)."""
    return Machine(kernel=collect_kernel(), tools=collect_tools())


def collect_kernel() -> KernelFeatures:
    """What its kernel offers, tried as far as we may."""
    root = os.geteuid() == 0
    btf = _BTF.read_bytes() if _BTF.is_file() and os.access(_BTF, os.R_OK) else b""
    # Every tracepoint has a type of this name in BTF, in the string table between NUL bytes.
    described = frozenset(name for name in RAW_TRACEPOINTS if b"\0btf_trace_%b\0" % name.encode() in btf)
    bpf, attachable = _try_bpf() if root else (None, described)
    return KernelFeatures(
        release=platform.release(),
        root=root,
        btf=bool(btf),
        bpf=bpf,
        raw_tracepoints=attachable,
        kprobes=_KPROBE_PMU.is_dir(),
        drop_reasons=b"\0SKB_DROP_REASON_NETFILTER_DROP\0" in btf,
        network=run_network_trials() if root else NetworkTrials(),
        bridge_netfilter=_BRIDGE_SYSCTLS.is_dir() or _loadable("br_netfilter"),
        congestion_controls=frozenset(_CONGESTION_CONTROLS.read_text().split())
        | ({"cubic"} if _loadable("tcp_cubic") else set()),
        cgroup_layout=cgroup_layout(Path("/proc/self/mounts").read_text()),
    )


def _try_bpf() -> tuple[bool, frozenset[str]]:
    try:
        with trivial_program(RAW_TRACEPOINT) as fd:
            return True, frozenset(name for name in RAW_TRACEPOINTS if can_attach_raw_tracepoint(name, fd))
    except OSError:
        return False, frozenset()


def cgroup_layout(mounts: str) -> str:
    """Which cgroup hierarchies the lines of /proc/self/mounts show."""
    kinds = {line.split()[2] for line in mounts.splitlines() if line.strip()}
    match ("cgroup" in kinds, "cgroup2" in kinds):
        case (True, True):
            return "hybrid"
        case (True, False):
            return "v1"
        case (False, True):
            return "v2"
    return "none"


def _loadable(module: str) -> bool:
    # A dry run: a doctor does not change the patient.
    modprobe = _which("modprobe")
    if modprobe is None:
        return False
    answer = subprocess.run((modprobe, "-n", "-q", module), check=False, stdin=subprocess.DEVNULL)
    return answer.returncode == 0


def collect_tools(*, versions: bool = True) -> Tools:
    """Which programs and Python modules there are, without importing any of the modules.

    :param versions: without them no program is run.
    """
    return Tools(
        binaries={name: _binary(name, *arguments, run=versions) for name, arguments in BINARIES.items()},
        modules={name: _module_version(name, package) for name, package in MODULES.items()},
    )


def _which(name: str) -> str | None:
    # A user's PATH often lacks the sbin directories, where these live.
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _binary(name: str, *arguments: str, run: bool) -> str | None:
    path = _which(name)
    if path is None:
        return None
    if not run:
        return ""
    try:
        answer = subprocess.run(
            (path, *arguments),
            check=False,
            capture_output=True,
            text=True,
            timeout=5,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"\d+(\.\d+)+", answer.stdout + answer.stderr)
    return match.group() if match else ""


def _module_version(name: str, package: str) -> str | None:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = spec.submodule_search_locations or ()
    # PyPI has an unrelated package of the same name.
    if name == "bcc" and not any((Path(place) / "libbcc.py").is_file() for place in places):
        return None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
