"""What scheduler, kubelet, container runtime, DNS and a network plugin do for a traced run, done here.

Pods that the API server has are bound to a node, get a sandbox as `KubeNode` makes it, and their containers
really run, as processes in cgroups and mount namespaces of their own: init containers one after another,
then the application. Logs are written as kubelet writes them, and the pods' status says what happened.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.kernel.cluster import NODE, KubeNode, KubePod
from ztprobe.kernelnet.netlink import remove_netns
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.runtime.cluster.rewriting import RUN_LABEL
from ztprobe.runtime.local import dns

LAYOUT = "v2-systemd"
_DNS_NUMBER = 53
_FIRST_NUMBER = 60
_POLL_S = 0.1


class Kubelet:
    """A context manager.

    :param nodes: pod's name -> where the scheduler puts it instead of here.
    :param image_problem: what keeps every image from being pulled; None: all of them are there.
    :param plugin: what becomes of packets that policies do not allow: ``drop`` or ``reject``; None: the
        network plugin enforces nothing.
    """

    def __init__(
        self,
        node: KubeNode,
        *,
        nodes: dict[str, str] | None = None,
        image_problem: str | None = None,
        plugin: str | None = None,
    ) -> None:
        self._node, self._nodes = node, nodes or {}
        self._image_problem, self._plugin = image_problem, plugin
        self._started: dict[str, _RunningPod] = {}
        self._policed: set[str] = set()
        self._numbers = iter(range(_FIRST_NUMBER, 250))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.problem: BaseException | None = None
        self.log = node.directory / "log" / "pods"
        self.names = node.directory / "hosts"

    def __enter__(self) -> Kubelet:
        self.log.mkdir(parents=True, exist_ok=True)
        self.names.touch()
        self._dns_netns = self._node.outside(f"d{secrets.token_hex(2)}", _DNS_NUMBER)
        with entered(self._dns_netns):
            command = dns.command(f"10.98.0.{_DNS_NUMBER}", self.names)  # type: ignore[arg-type]
            self._dns = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for one in self._started.values():
            one.kill()
        for uid in list(self._started):
            self._gone(uid)
        self._dns.kill()
        self._dns.wait()
        remove_netns(self._dns_netns.name)
        assert self.problem is None, self.problem

    def kill(self, name: str) -> None:
        """Have the kernel end what runs in a pod."""
        (one,) = (one for one in self._started.values() if one.name == name)
        one.kill()

    def _work(self) -> None:
        try:
            while not self._end.wait(_POLL_S):
                self._look()
        except BaseException as error:  # the test is told when it leaves
            self.problem = error

    def _look(self) -> None:
        pods = self._node.call("GET", f"/api/v1/pods?labelSelector={RUN_LABEL}")["items"]
        for uid in self._started.keys() - {pod["metadata"]["uid"] for pod in pods}:
            self._gone(uid)  # one that had ended goes at once
        for pod in pods:
            uid, node = pod["metadata"]["uid"], pod["spec"].get("nodeName")
            if "deletionTimestamp" in pod["metadata"]:
                self._gone(uid)
                self._call("DELETE", pod, body={"gracePeriodSeconds": 0})
            elif node is None:
                self._bind(pod)
            elif node == NODE and uid not in self._started:
                self._start(pod)
        for one in list(self._started.values()):
            one.proceed()
        if self._plugin is not None:
            self._police()

    def _bind(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        wanted = pod["spec"].get("affinity", {}).get("nodeAffinity")
        node = NODE if wanted is not None else self._nodes.get(name, NODE)
        if node == "":
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            self.report(pod, {"conditions": [condition | {"message": "0/1 nodes: Insufficient cpu."}]})
            return
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        self._call("POST", pod, "/binding", {"metadata": {"name": name}, "target": target})

    def _start(self, pod: dict[str, Any]) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        sandbox = self._node.bring_up(name, uid, next(self._numbers), layout=LAYOUT)
        service, namespace = pod["metadata"]["labels"]["app"], pod["metadata"]["namespace"]
        with self.names.open("a") as file:
            file.write(f"{sandbox.address} {service}.{namespace}.svc.cluster.local\n")
        self._dns.send_signal(signal.SIGHUP)
        self._started[uid] = _RunningPod(self, self._node, pod, sandbox, self._image_problem)

    def _gone(self, uid: str) -> None:
        if (one := self._started.pop(uid, None)) is not None:
            one.kill()
            self._node.kill(one.name)

    def _police(self) -> None:
        """Once a namespace has policies: what these manifests' mean, in its pods' own networks."""
        policies = self._node.call("GET", "/apis/networking.k8s.io/v1/networkpolicies")["items"]
        closed = {one["metadata"]["namespace"] for one in policies}
        ours = [one for one in self._started.values() if one.namespace in closed]
        servers = [one.sandbox.address for one in ours if one.app == "fl-server"]
        clients = [one.sandbox.address for one in ours if one.app == "fl-client"]
        for one in ours:
            if one.uid in self._policed:
                continue
            self._policed.add(one.uid)
            opened = {
                "in": [f"ip saddr {{ {', '.join(clients)} }} tcp dport 50051"]
                if one.app == "fl-server"
                else [],
                "out": [f"ip daddr {servers[0]} tcp dport 50051"] if one.app == "fl-client" else [],
            }
            opened["out"] += [f"meta l4proto {{ tcp, udp }} ip daddr 10.98.0.{_DNS_NUMBER} th dport 53"]
            chains = ""
            for way, hook in (("in", "input"), ("out", "output")):
                lines = ["iif lo accept" if way == "in" else "oif lo accept", "ct state established accept"]
                lines += [f"{rule} accept" for rule in opened[way]]
                last = "\n".join([*lines, f"counter {self._plugin}"])
                chains += f"chain {way} {{\ntype filter hook {hook} priority 0\n{last}\n}}\n"
            with entered(one.sandbox.netns):
                subprocess.run(["nft", f"table ip plugin {{\n{chains}}}"], check=True)

    def report(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        """What kubelet says of a pod."""
        self._call("PATCH", pod, "/status", {"status": status})

    def _call(self, method: str, pod: dict[str, Any], more: str = "", body: Any = None) -> None:
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}{more}"
        self._node.call(method, path, body, check=False)  # it may have been removed meanwhile


class _RunningPod:
    """A pod's containers, one step at a time."""

    def __init__(
        self, kubelet: Kubelet, node: KubeNode, pod: dict[str, Any], sandbox: KubePod, problem: str | None
    ) -> None:
        metadata, spec = pod["metadata"], pod["spec"]
        self.name, self.uid, self.namespace = metadata["name"], metadata["uid"], metadata["namespace"]
        self.app, self.sandbox = metadata["labels"]["app"], sandbox
        self._kubelet, self._node, self._pod, self._problem = kubelet, node, pod, problem
        self._init = len(spec.get("initContainers", ()))
        self._containers = [*spec.get("initContainers", ()), *spec["containers"]]
        self._at = 0
        self._running: subprocess.Popen[bytes] | None = None
        self._writer: threading.Thread | None = None
        self._failed = False
        self._states: dict[str, dict[str, Any]] = {}
        self._said: dict[str, Any] = {}
        self._volumes = node.directory / "volumes" / self.uid

    def proceed(self) -> None:
        """Start what is next, or see how what runs has ended."""
        container = self._containers[self._at] if self._at < len(self._containers) else None
        if container is not None and self._running is None and not self._failed:
            if self._problem is not None:
                waiting = {"reason": self._problem, "message": "no such image in any registry"}
                self._states[container["name"]] = {"state": {"waiting": waiting}}
            else:
                self._begin(container)
        elif container is not None and self._running is not None and self._running.poll() is not None:
            assert self._writer is not None
            self._writer.join()  # a container's log is whole before its end is told
            status = self._running.returncode
            code = 128 - status if status < 0 else status
            state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
            self._states[container["name"]]["state"] = state
            self._running, self._at, self._failed = None, self._at + 1, code != 0
        self._report()

    def _begin(self, container: dict[str, Any]) -> None:
        name, identity = container["name"], secrets.token_hex(32)
        log = self._kubelet.log / f"{self.namespace}_{self.name}_{self.uid}" / name / "0.log"
        log.parent.mkdir(parents=True)
        log.touch()
        groups = self._node.container_cgroups(self.uid, LAYOUT, identity)
        with entered(self.sandbox.netns):
            self._running = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", self._mounts(container, groups), *container["command"]],
                cwd=REPO_DIR,
                env=self._environment(container),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        self._writer = threading.Thread(target=_keep_logs, args=(self._running, log), daemon=True)
        self._writer.start()
        self._states[name] = {"containerID": f"containerd://{identity}", "state": {"running": {}}}

    def _mounts(self, container: dict[str, Any], groups: list[Path]) -> str:
        """A shell's words that join the cgroups, put the pod's volumes into place, and become the program."""
        resolv = self._volumes / "resolv.conf"
        resolv.parent.mkdir(parents=True, exist_ok=True)
        resolv.write_text(dns.resolv_conf(f"10.98.0.{_DNS_NUMBER}", self.namespace))
        lines = [f"echo $$ > {group}/cgroup.procs" for group in groups]
        lines += ["mount -t tmpfs none /run", f"mount --bind {resolv} /etc/resolv.conf"]
        for mount in container.get("volumeMounts", ()):
            directory = self._volumes / mount["name"]
            directory.mkdir(exist_ok=True)
            lines += [f"mkdir -p {mount['mountPath']}", f"mount --bind {directory} {mount['mountPath']}"]
        return " && ".join([*lines, 'exec "$0" "$@"'])

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        found = {"PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"}
        for source in container.get("envFrom", ()):
            name = source["configMapRef"]["name"]
            path = f"/api/v1/namespaces/{self.namespace}/configmaps/{name}"
            found |= self._node.call("GET", path)["data"]
        for one in container.get("env", ()):
            found[one["name"]] = self.name if "valueFrom" in one else one.get("value", "")
        return found

    def _report(self) -> None:
        ended = self._at == len(self._containers) or self._failed
        phase = "Pending" if self._at < self._init else "Running"
        status: dict[str, Any] = {
            "phase": ("Failed" if self._failed else "Succeeded") if ended else phase,
            "podIP": self.sandbox.address,
            "podIPs": [{"ip": self.sandbox.address}],
        }
        blank = {"image": "", "imageID": "", "ready": False, "restartCount": 0}
        for section, part in (
            ("initContainerStatuses", self._containers[: self._init]),
            ("containerStatuses", self._containers[self._init :]),
        ):
            waiting = {"state": {"waiting": {"reason": "PodInitializing"}}}
            status[section] = [
                blank | {"name": one["name"]} | self._states.get(one["name"], waiting) for one in part
            ]
        if status != self._said:
            self._kubelet.report(self._pod, status)
            self._said = status

    def kill(self) -> None:
        """End what runs."""
        if self._running is not None and self._running.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._running.kill()
            for group in self._groups():
                for pid in (group / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            self._running.wait()

    def _groups(self) -> Iterator[Path]:
        for group in self.sandbox.cgroups:
            yield from (one for one in group.parent.iterdir() if one.is_dir() and one != group)


def _keep_logs(process: subprocess.Popen[bytes], log: Path) -> None:
    """As kubelet writes it: when, which stream, whether the line is whole, the line."""
    with log.open("ab", buffering=0) as kept:

        def keep(stream: Any, name: bytes) -> None:
            for line in stream:
                kept.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z ".encode() + name + b" F " + line)

        errors = threading.Thread(target=keep, args=(process.stderr, b"stderr"))
        errors.start()
        keep(process.stdout, b"stdout")
        errors.join()


def await_line(process: subprocess.Popen[str], words: str, timeout_s: float) -> str:
    """Read a process's standard error until a line has these words; all that was read."""
    assert process.stderr is not None
    until, read = time.monotonic() + timeout_s, ""
    for line in process.stderr:
        read += line
        if words in line:
            return read
        assert time.monotonic() < until, read
    raise AssertionError(read)
