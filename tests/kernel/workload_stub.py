"""A run whose server and clients are a few lines of Python, for tests of the runtime alone.

The manifests are the real ones with the applications' commands replaced, so that torch
need not be loaded.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from ztprobe import paths
from ztprobe.runtime.base import WorkloadOptions
from ztprobe.runtime.local import LocalRuntime

SERVER = """
import os, socket, threading
host, _, port = os.environ["FL_LISTEN"].rpartition(":")
listener = socket.create_server((host, int(port)))
done = threading.Semaphore(0)
def serve(sock):
    sock.sendall(b"hello")
    if sock.recv(16) == b"bye":
        done.release()
    sock.close()
def accept():
    while True:
        threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
for _ in range(int(os.environ["FL_CLIENTS"])):
    done.acquire()
print("served", flush=True)
"""
CLIENT = """
import os, socket
host, _, port = os.environ["FL_SERVER"].rpartition(":")
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
    directory: Path, level: int, clients: int = 2, manifests_dir: Path | None = None, offloads: bool = False
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
        ),
        run_id=f"t{secrets.token_hex(4)}",
        log_dir=directory / "logs",
        offloads=offloads,
        manifests_dir=manifests_dir or manifests(directory),
    )
