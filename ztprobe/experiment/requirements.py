"""Whether the job can run here: each thing that stands in the way, in one line with its remedy.

Pure judgements over a `Machine`, and `check_main_job`, which also looks at the output directory.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path

from ztprobe import paths
from ztprobe.emulation.backends import choose_backend
from ztprobe.errors import PreflightError, RunDirError
from ztprobe.experiment.names import Experiment
from ztprobe.preflight.features import KernelFeatures, Machine, collect
from ztprobe.preflight.signals import choose_hooks
from ztprobe.profile.model import Profile
from ztprobe.rundir import files

__all__ = (
    "check_attach",
    "check_machine",
    "check_main_job",
    "check_on_cluster",
    "check_out",
    "delay_backend",
    "machine_problems",
    "out_problems",
    "rate_backend",
)

_DEBIAN_PACKAGE = {
    "haproxy": "haproxy",
    "dnsmasq": "dnsmasq-base",
    "nft": "nftables",
    "iptables": "iptables",
}
_NOT_ROOT = "not root: network namespaces and BPF programs need it; run it with sudo"
_OPEN_FILES = 1024  # the usual limit: probes, maps and pipes of a job with five clients are some 300
_PYTHON_MODULES = ("pyroute2",)
_WORKLOAD_MODULES = ("grpc", "sklearn", "torch")


def check_main_job(experiments: Sequence[Experiment], out: Path, *, machine: Machine | None = None) -> None:
    """Refuse what cannot be traced into ``out`` here, before anything is changed; one line a problem.

    :param machine: collected already (default: ask now, 0.2 s).
    :raises PreflightError: this machine lacks something.
    :raises RunDirError: no run directory can be made at ``out``.
    """
    check_machine(experiments, machine=machine)
    check_out(out)


def check_attach(out: Path | None, *, machine: Machine | None = None) -> None:
    """Refuse what cannot be watched here, or written to ``out``; the deployment itself needs nothing.

    :param out: None: whoever writes looks at it.
    :param machine: collected already (default: ask now, 0.2 s).
    :raises PreflightError: this machine lacks something, or only root can do it.
    :raises RunDirError: no run directory can be made at ``out``.
    """
    machine = machine or collect()
    problems = [_NOT_ROOT]
    if machine.kernel.root:
        tools = [line for line in _tool_problems(machine, ()) if "bcc" in line or "pyroute2" in line]
        problems = _kernel_problems(machine.kernel, ()) + tools + open_files_problems()
    if problems:
        raise PreflightError("\n".join(problems))
    if out is not None:
        check_out(out)


def check_on_cluster(
    profiles: Sequence[Profile], out: Path | None, *, machine: Machine | None = None
) -> None:
    """Refuse what cannot be watched on this node of a cluster, or emulated on its pods.

    The delay line is no part of it: its rules would stand in the node's own network, beside the cluster's.

    :param out: None: whoever writes looks at it.
    :param machine: collected already (default: ask now, 0.2 s).
    :raises PreflightError: this node lacks something, or only root can do it.
    :raises RunDirError: no run directory can be made at ``out``.
    """
    machine = machine or collect()
    check_attach(out, machine=machine)
    for profile in profiles:
        if "nfqueue" in choose_backend(profile, netem=bool(machine.kernel.network.netem)):
            raise PreflightError(
                f"{profile.name}: this node's kernel has no netem (CONFIG_NET_SCH_NETEM), and trace puts no"
                " delay line on a cluster's node: take net0, or a rate alone such as net5"
            )


def check_machine(experiments: Sequence[Experiment], *, machine: Machine | None = None) -> None:
    """Refuse what cannot be run on this machine, whatever is made of it.

    :param machine: collected already (default: ask now, 0.2 s).
    :raises PreflightError: this machine lacks something, or only root can do it.
    """
    machine = machine or collect()
    # Without root, whatever else seems to be missing may only be hidden from this user.
    problems = [_NOT_ROOT]
    if machine.kernel.root:
        problems = machine_problems(machine, experiments) + open_files_problems()
    if problems:
        raise PreflightError("\n".join(problems))


def machine_problems(machine: Machine, experiments: Iterable[Experiment]) -> list[str]:
    """What this machine lacks for ``experiments``; every line says what would provide it."""
    experiments = tuple(experiments)
    incomplete = [
        f"{path} is missing: this installation of ztprobe is incomplete, install it again"
        for path in paths.missing_data()
    ]
    return incomplete + _kernel_problems(machine.kernel, experiments) + _tool_problems(machine, experiments)


def open_files_problems() -> list[str]:
    """Whether this process may open what a job needs; its own limit is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _OPEN_FILES <= hard or (soft < _OPEN_FILES and hard == resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, hard))
        soft = _OPEN_FILES
    if 0 <= soft < _OPEN_FILES:
        return [f"only {soft} files may be open at a time: allow {_OPEN_FILES} (ulimit -n {_OPEN_FILES})"]
    return []


def delay_backend(machine: Machine) -> str | None:
    """``netem``, ``nfqueue`` (the userspace delay line) or None; "unknown" without root."""
    network = machine.kernel.network
    if network.netem:
        return "netem"
    if network.nfqueue and machine.kernel.bridge_netfilter:
        return "nfqueue"
    return "unknown" if network.netem is None else None


def rate_backend(kernel: KernelFeatures) -> str | None:
    """``tbf``, ``netem`` or None; "unknown" without root."""
    network = kernel.network
    if network.netem is None:
        return "unknown"
    return next((name for name in ("tbf", "netem") if getattr(network, name)), None)


def _kernel_problems(kernel: KernelFeatures, experiments: Sequence[Experiment]) -> list[str]:
    problems = []
    if not kernel.root:
        problems.append(_NOT_ROOT)
    if not kernel.btf:
        problems.append("no BTF in /sys/kernel/btf/vmlinux: boot a kernel with CONFIG_DEBUG_INFO_BTF")
    if kernel.bpf is False:
        problems.append("bpf(2) refuses programs: boot a kernel with CONFIG_BPF_SYSCALL, or allow CAP_BPF")
    # Without BTF or bpf(2) every signal is missing, and one line about the cause is enough.
    if kernel.btf and kernel.bpf is not False:
        problems += [
            f"no hook for the signal {verdict.signal} ({verdict.gives}): it needs {verdict.remedy}"
            for verdict in choose_hooks(kernel)
            if verdict.hook is None
        ]
    for kind, config in (("veth", "CONFIG_VETH"), ("bridge", "CONFIG_BRIDGE")):
        if getattr(kernel.network, kind) is False:
            problems.append(f"the kernel makes no {kind} links: boot one with {config}")
    if kernel.network.nft is False and any(experiment.network_policy for experiment in experiments):
        problems.append("nft cannot add a rule on connection state: it needs nftables and CONFIG_NFT_CT")
    return problems


def _tool_problems(machine: Machine, experiments: Sequence[Experiment]) -> list[str]:
    tools, problems = machine.tools, []
    if tools.modules.get("bcc") is None:
        problems.append(
            "the Python module bcc is missing: install Debian's python3-bpfcc (PyPI's bcc is something else) "
            "and use a virtual environment with --system-site-packages; 'make setup' does both"
        )
    problems += [
        f"the Python module {module} is missing: 'make setup' installs it"
        for module in _PYTHON_MODULES
        if tools.modules.get(module) is None
    ]
    problems += [
        f"the Python module {module} is missing, which the workload needs: 'make setup' or"
        " pip install 'ztprobe[workload]' installs it"
        for module in _WORKLOAD_MODULES
        if tools.modules.get(module) is None
    ]
    problems += [
        f"{binary} is missing, which {user} needs: install the package {_DEBIAN_PACKAGE[binary]}"
        for binary, user in _needed_binaries(experiments).items()
        if tools.binaries.get(binary) is None
    ]
    if any(experiment.shaped for experiment in experiments):
        problems += _emulation_problems(machine)
    return problems


def _needed_binaries(experiments: Sequence[Experiment]) -> dict[str, str]:
    needed = {"dnsmasq": "name resolution"}
    for experiment in experiments:
        if experiment.network_policy:
            needed["nft"] = f"sec{experiment.level}"
        if experiment.mutual_tls:
            needed["haproxy"] = f"sec{experiment.level}"
    return needed


def _emulation_problems(machine: Machine) -> list[str]:
    problems = []
    if delay_backend(machine) is None:
        problems.append(
            "neither netem nor the delay line works: boot a kernel with CONFIG_NET_SCH_NETEM, "
            "or with NFQUEUE, br_netfilter and the package iptables"
        )
    if rate_backend(machine.kernel) is None:
        problems.append("no qdisc limits a rate: boot a kernel with CONFIG_NET_SCH_HTB")
    return problems


def check_out(out: Path) -> None:
    """:raises RunDirError: no run directory can be made at ``out``; nothing is created."""
    if problems := out_problems(out):
        raise RunDirError("\n".join(problems))


def out_problems(out: Path) -> list[str]:
    """Why a run directory cannot be made at ``out``; nothing is created."""
    try:
        return _out_problems(out)
    except OSError as error:  # a name that is too long, a loop of links, somebody else's directory
        return [f"output directory {out}: {error.strerror}: name another with --out"]


def _out_problems(out: Path) -> list[str]:
    if out.is_dir():
        if any(out.iterdir()):
            return [f"output directory {out} is not empty: name another with --out"]
        place = out
    elif out.exists():
        return [f"output directory {out} is a file: name another with --out"]
    else:
        place = next(parent for parent in out.absolute().parents if parent.exists())
    if not place.is_dir():
        return [f"output directory {out}: {place} is a file: name another with --out"]
    # access(2) also knows of read-only file systems, which root meets too.
    if not os.access(place, os.W_OK | os.X_OK):
        return [f"output directory {out} is not writable ({place} is not): name another with --out"]
    files.checked(place)
    return []
