"""python -m tools.kube_cluster.inside DIRECTORY IMAGE...: runs in the node's namespaces and keeps it up.

It is started in a network and a mount namespace of its own and in the node's cgroup, and never ends by
itself: a program that ends is started again, as a service manager would do it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tools.kube_cluster.api import ApiServer, Refused
from tools.kube_cluster.components import KERNEL_DEFAULTS, Component, components
from tools.kube_cluster.credentials import kubeconfig
from tools.kube_cluster.names import Names
from tools.kube_cluster.pause import write_pause
from tools.kube_cluster.places import CRI, NODE, NODE_ADDRESS, ClusterError, bin_dir

__all__ = ("OWN", "READY", "main")

READY = "ready.json"
# The node's own, in the places of the machine's.
OWN = {"run": "/run", "lib": "/var/lib", "log": "/var/log"}
_LOOK_S, _AGAIN_S = 1.0, 1.0
_STARTED_S = 120.0


def main(directory: Path, images: list[Path]) -> None:
    """Bring the node up, say so in a file, and keep it up.

    :raises ClusterError: something of it does not come up.
    """
    begun_s = time.monotonic()
    _own_mounts(directory)
    _own_network()
    api = ApiServer(kubeconfig(directory, "admin"))
    services = _Services(directory)
    with ThreadPoolExecutor() as pool:
        services.start("etcd", "containerd", "kube-apiserver")
        imported = pool.submit(_import, [_pause(directory), *images])
        _wait("the API server is ready", lambda: api.call("GET", "/readyz") == "ok", services, imported)
        _say(f"kube-cluster: API server ready after {time.monotonic() - begun_s:.0f} s")
        services.start("kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet")
        names = Names(api, directory / "names")
        _wait("the node is ready", lambda: _is_ready(api), services, imported)
        _say(f"kube-cluster: node ready after {time.monotonic() - begun_s:.0f} s")
        imported.result()
    took_s = time.monotonic() - begun_s
    _say(f"kube-cluster: {len(images)} images there after {took_s:.0f} s")
    names.look()
    (directory / READY).write_text(json.dumps({"pid": os.getpid(), "node": NODE, "took_s": round(took_s, 1)}))
    _silent(directory / "log" / "node.log")
    while True:
        names.look()
        services.look()
        time.sleep(_LOOK_S)


def _own_mounts(directory: Path) -> None:
    # What others have bound there (namespaces) would be held by this mount namespace for as long as it lives.
    subprocess.run(["umount", "--recursive", "--lazy", "/run/netns"], check=False, stderr=subprocess.DEVNULL)
    # As a service manager has it: volumes of pods may be passed on.
    _run("mount", "--make-rshared", "/")
    for name, place in OWN.items():
        _run("mount", "--bind", str(directory / name), place)
    for name in KERNEL_DEFAULTS:
        _run("mount", "--bind", str(directory / "sysctls" / name), f"/proc/sys/{name}")


def _own_network() -> None:
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", f"{NODE_ADDRESS}/32", "dev", "lo")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _run(*words: str) -> None:
    done = subprocess.run(words, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(words[:3])}: {done.stderr.strip()}")


def _pause(directory: Path) -> Path:
    archive = directory / "pause.oci.tar"
    write_pause(archive)
    return archive


def _import(images: list[Path]) -> None:
    until_s = time.monotonic() + _STARTED_S
    while not Path(CRI).is_socket():
        if time.monotonic() > until_s:
            raise ClusterError("containerd does not listen")
        time.sleep(0.1)
    for image in images:
        _run(str(bin_dir() / "ctr"), f"--address={CRI}", "--namespace=k8s.io", "images", "import", str(image))


def _is_ready(api: ApiServer) -> bool:
    # Pods may come as soon as their namespace has its account, and the node says that it takes them.
    api.call("GET", "/api/v1/namespaces/default/serviceaccounts/default")
    conditions = api.call("GET", f"/api/v1/nodes/{NODE}")["status"].get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _wait(what: str, is_so: Callable[[], bool], services: _Services, imported: Future[None]) -> None:
    until_s = time.monotonic() + _STARTED_S
    while True:
        with contextlib.suppress(OSError, Refused):
            if is_so():
                return
        if imported.done():
            imported.result()
        services.look()
        if time.monotonic() > until_s:
            raise ClusterError(f"not within {_STARTED_S:.0f} s: {what}")
        time.sleep(0.2)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # whoever began it may be gone
        print(line, flush=True)


def _silent(log: Path) -> None:
    """From here on nobody may be there to read what is said."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


class _Services:
    """The programs that are kept running."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known = components(directory)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._again_s: dict[str, float] = {}

    def start(self, *names: str) -> None:
        for name in names:
            self._start(self._known[name])

    def _start(self, one: Component) -> None:
        environment = {**os.environ, "PATH": f"{bin_dir()}:{os.environ['PATH']}:/usr/sbin:/sbin"}
        with (self._directory / "log" / f"{one.name}.log").open("ab") as log:
            process = subprocess.Popen(
                one.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        self._running[one.name] = process
        (self._directory / f"{one.name}.pid").write_text(str(process.pid))

    def look(self) -> None:
        """Start again what has ended, after a moment."""
        now_s = time.monotonic()
        for name, process in self._running.items():
            if process.poll() is None:
                continue
            if name not in self._again_s:
                _say(f"kube-cluster: {name} ended with status {process.returncode}")
                self._again_s[name] = now_s + _AGAIN_S
            elif now_s > self._again_s[name]:
                del self._again_s[name]
                self._start(self._known[name])


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
    except ClusterError as problem:
        print(f"kube-cluster: {problem}", file=sys.stderr)
        sys.exit(3)
