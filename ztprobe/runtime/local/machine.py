"""Whether this machine has what a local run needs: root, programs, files, a congestion control."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ztprobe.documents.problem import shown
from ztprobe.errors import PreflightError
from ztprobe.runtime.local import transport
from ztprobe.runtime.local.containers import PATH, forked_module
from ztprobe.runtime.local.workload import Workload

__all__ = ("check_machine",)

_PACKAGES = {"haproxy": "haproxy", "dnsmasq": "dnsmasq-base", "nft": "nftables"}


def check_machine(workload: Workload, *, mutual_tls: bool, congestion_control: str) -> None:
    """:raises PreflightError: not root, or something is missing that this workload needs."""
    if os.geteuid() != 0:
        raise PreflightError("network namespaces need root: run it with sudo")
    needed = ["dnsmasq", *(["haproxy"] if mutual_tls else []), *(["nft"] if workload.policies else [])]
    for program in needed:
        if shutil.which(program, path=PATH) is None:
            raise PreflightError(f"{program} is missing: apt-get install {_PACKAGES[program]}")
    for pod in (workload.server, *workload.edges[:1], *workload.clients[:1]):  # the others are like these
        for container in pod.containers:
            program = container.command[0]
            if forked_module(container.command) is None and shutil.which(program, path=PATH) is None:
                raise PreflightError(f"{pod.name}/{container.name}: no such program: {shown(program)}")
    if not Path("/etc/resolv.conf").exists():
        raise PreflightError("/etc/resolv.conf is missing, over which pods mount their own: touch it")
    transport.check(congestion_control)
