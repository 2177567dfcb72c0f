"""A run whose server and clients are a few lines of Python, for tests of the runtime alone.

The manifests are the real ones with the applications' commands replaced, so that torch
need not be loaded.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ztprobe import paths
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local import cgroups
from ztprobe.runtime.local.runtime import LocalRuntime

ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
SERVER = """
import os, socket, threading
done = threading.Semaphore(0)
def serve(sock):
    sock.sendall(b"hello")
    if sock.recv(16) == b"bye":
        done.release()
    sock.close()
def accept(listener):
    while True:
        threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
for address in os.environ["FL_LISTEN"].split(","):
    host, _, port = address.rpartition(":")
    shared = "so_reuseport" in os.environ.get("FL_GRPC_OPTIONS", "")
    listener = socket.create_server((host, int(port)), reuse_port=shared)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
for _ in range(int(os.environ["FL_CLIENTS"])):
    done.acquire()
print("served", flush=True)
"""
CLIENT = """
import os, socket
file = os.environ.get("FL_SERVER_FILE")
host, _, port = (open(file).read() if file else os.environ["FL_SERVER"]).rpartition(":")
with socket.create_connection((host, int(port)), timeout=10) as sock:
    assert sock.recv(5) == b"hello"
    print(os.environ["POD_NAME"], sock.getpeername()[0], flush=True)
    sock.sendall(b"bye")
"""


def manifests(directory: Path, server: str = SERVER, client: str = CLIENT) -> Path:
    """A copy of the manifests that runs these programs instead of the workload."""
    copy = directory / "manifests"
    shutil.copytree(paths.MANIFESTS_DIR, copy)
    for name, program in (("server", server), ("clients", client)):
        (copy / "base" / f"{name}.py").write_text(program)
        file = copy / "base" / f"{name}.yaml"
        role = name.removesuffix("s")
        command = f"[/usr/bin/python3, {copy / 'base' / f'{name}.py'}]"
        text = file.read_text()
        assert f"[python, -m, fl.{role}]" in text
        file.write_text(text.replace(f"[python, -m, fl.{role}]", command))
    return copy


def runtime(
    directory: Path,
    level: int,
    clients: int = 2,
    manifests_dir: Path | None = None,
    offloads: bool = False,
    later_level: int | None = None,
) -> LocalRuntime:
    """A runtime over the stub workload, not created yet."""
    return LocalRuntime(
        WorkloadOptions(
            rounds=1,
            clients=clients,
            seed=0,
            distribution="iid",
            dataset="digits",
            data_dir=None,
            reconnect=False,
            level=level,
            later_level=later_level,
        ),
        run_id=f"t{secrets.token_hex(4)}",
        log_dir=directory / "logs",
        offloads=offloads,
        manifests_dir=manifests_dir or manifests(directory),
    )


def traces(run_id: str) -> list[str]:
    """Everything on this machine that carries the run's name."""
    name = f"ztp-{run_id}"
    found = [str(path) for path in Path("/run/netns").glob(f"{name}*")]
    found += [str(root / name) for root in cgroups.detect().roots if (root / name).exists()]
    found += [str(path) for path in [paths.STATE_DIR / run_id] if path.exists()]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if run_id in line]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if name in Path(f"/proc/{pid}/cgroup").read_text():
                found.append(f"process {pid}")
    return found


@contextlib.contextmanager
def up(runtime: LocalRuntime) -> Iterator[LocalRuntime]:
    """The runtime with its pods; afterwards nothing of it is left."""
    allowed = ALLOWED.read_text()
    try:
        runtime.create()
        yield runtime
    finally:
        runtime.down()
    assert traces(runtime._run_id) == []
    assert ALLOWED.read_text() == allowed
    runtime.down()


def finish(runtime: LocalRuntime) -> None:
    """Start the clients and wait for the end."""
    runtime.start_clients()
    deadline = time.monotonic() + 20
    while not runtime.finished():
        runtime.check()
        assert time.monotonic() < deadline, "the workload does not finish"
        time.sleep(0.02)
