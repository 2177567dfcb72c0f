"""Deployments of `tests.generic_direct`, brought up: a server, its clients, and what names them."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.deployments import Place, switch_ipv6_on
from tests.generic_direct import Settings
from tests.generic_transports import NAME
from ztprobe.kernelnet.netlink import create_netns, netlink, remove_netns
from ztprobe.kernelnet.netns import entered
from ztprobe.runtime.local.certificates import Authority

__all__ = ("Deployed", "deployment", "loopback")

_PORT = 18100


@dataclass(frozen=True)
class Deployed:
    """A deployment that stands and waits for its file ``go``."""

    settings: Settings
    processes: dict[str, subprocess.Popen[bytes]]

    @property
    def directory(self) -> Path:
        return Path(self.settings.directory)

    @property
    def targets(self) -> list[str]:
        """Options that name everybody."""
        pids = {name: process.pid for name, process in self.processes.items()}
        return [
            *("--server", f"pid:{pids['server']}"),
            *(word for name in self.settings.names for word in ("--client", f"pid:{pids[name]}")),
        ]


@contextlib.contextmanager
def loopback(*, ipv6: bool = False) -> Iterator[list[Place]]:
    """One namespace for all."""
    name = f"ztp-t{secrets.token_hex(3)}"
    netns = create_netns(name)
    try:
        with netlink(netns) as ipr:
            ipr.link("set", index=1, state="up")
        if ipv6:
            switch_ipv6_on(netns, "lo")
        yield [(netns, "::1" if ipv6 else "127.0.0.1")]
    finally:
        remove_netns(name)


@contextlib.contextmanager
def deployment(directory: Path, where: list[Place], **chosen: Any) -> Iterator[Deployed]:
    """Server and clients, connected with each other; gone with the context."""
    directory.mkdir()
    settings = Settings(directory=str(directory), host=where[0][1], port=_PORT, **chosen)
    if settings.tls:
        made = Authority("transports").sign("generic", "server", [NAME])
        certificate, key = settings.certificate
        certificate.write_bytes(made["tls.crt"] + made["ca.crt"])
        key.write_bytes(made["tls.key"])
        settings.authority.write_bytes(made["ca.crt"])
    file = settings.save()
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for number, role in enumerate(["server", *settings.names]):
            netns, _ = where[min(number, len(where) - 1)]
            with entered(netns):
                command = [sys.executable, "-m", "tests.generic_direct", str(file), role]
                processes[role] = subprocess.Popen(command)
        logs = [directory / f"{name}.jsonl" for name in settings.names]
        give_up = time.monotonic() + 60
        while not all(log.exists() and log.read_text() for log in logs):
            assert time.monotonic() < give_up, "the clients do not connect"
            time.sleep(0.05)
        yield Deployed(settings, processes)
    finally:
        for process in reversed(processes.values()):
            process.terminate()
            process.wait()
