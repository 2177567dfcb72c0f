"""What scheduler, kubelet, container runtime, DNS and a network plugin do for a traced run, done here.

Pods that the API server has are bound to a node, get a sandbox as `KubeNode` makes it, and their containers
really run (`tests.kernel.running_pod`).
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import threading
import time
from typing import Any

from tests.kernel.cluster import NODE, KubeNode
from tests.kernel.running_pod import DNS_ADDRESS, LAYOUT, RunningPod
from ztprobe.kernelnet.netlink import remove_netns
from ztprobe.kernelnet.netns import entered
from ztprobe.runtime.cluster.rewriting import RUN_LABEL
from ztprobe.runtime.local import dns

_DNS_NUMBER = int(DNS_ADDRESS.rpartition(".")[2])
_FIRST_NUMBER = 60
_POLL_S = 0.1


class Kubelet:
    """A context manager.

    :param nodes: pod's name -> where the scheduler puts it instead of here.
    :param also: nodes besides this one whose pods run, too: they share this machine's kernel.
    :param image_problem: what keeps every image from being pulled; None: all of them are there.
    :param plugin: what becomes of packets that policies do not allow: ``drop`` or ``reject``; None: the
        network plugin enforces nothing.
    """

    def __init__(
        self,
        node: KubeNode,
        *,
        nodes: dict[str, str] | None = None,
        also: tuple[str, ...] = (),
        image_problem: str | None = None,
        plugin: str | None = None,
    ) -> None:
        self._node, self._nodes = node, nodes or {}
        self._run = (NODE, *also)
        self._image_problem, self._plugin = image_problem, plugin
        self._started: dict[str, RunningPod] = {}
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

    def pid(self, name: str, container: str) -> int:
        """Of a pod's container's first process."""
        (one,) = (one for one in self._started.values() if one.name == name)
        return one.pid(container)

    def kill(self, name: str, container: str | None = None) -> None:
        """Have the kernel end what runs in a pod. :param container: this one alone."""
        (one,) = (one for one in self._started.values() if one.name == name)
        one.kill(container)

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
            elif node in self._run and uid not in self._started:
                self._start(pod)
        for one in list(self._started.values()):
            one.proceed()
        if self._plugin is not None:
            self._police()

    def _bind(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        wanted = pod["spec"].get("affinity", {}).get("nodeAffinity")
        node = _required(wanted) if wanted is not None else self._nodes.get(name, NODE)
        if node == "":
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            self.report(pod, {"conditions": [condition | {"message": "0/1 nodes: Insufficient cpu."}]})
            return
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        self._call("POST", pod, "/binding", {"metadata": {"name": name}, "target": target})

    def _start(self, pod: dict[str, Any]) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        # Runs of several namespaces have pods of the same names.
        key = name if name not in self._node.pods else f"{name}-{uid}"
        sandbox = self._node.bring_up(key, uid, next(self._numbers), layout=LAYOUT)
        service, namespace = pod["metadata"]["labels"]["app"], pod["metadata"]["namespace"]
        with self.names.open("a") as file:
            file.write(f"{sandbox.address} {service}.{namespace}.svc.cluster.local\n")
        self._dns.send_signal(signal.SIGHUP)
        self._started[uid] = RunningPod(self.log, self.report, self._node, pod, sandbox, self._image_problem)

    def _gone(self, uid: str) -> None:
        if (one := self._started.pop(uid, None)) is not None:
            one.kill()
            self._node.kill(one.sandbox.name)

    def _police(self) -> None:
        """Once a namespace has policies: what these manifests' mean, in its pods' own networks."""
        policies = self._node.call("GET", "/apis/networking.k8s.io/v1/networkpolicies")["items"]
        closed = {one["metadata"]["namespace"] for one in policies}
        ours = [one for one in self._started.values() if one.namespace in closed]
        for one in ours:
            if one.uid in self._policed:
                continue
            self._policed.add(one.uid)
            run = [other for other in ours if other.namespace == one.namespace]
            servers = [other.sandbox.address for other in run if other.app == "fl-server"]
            clients = [other.sandbox.address for other in run if other.app == "fl-client"]
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


def _required(affinity: dict[str, Any]) -> str:
    """The only node that a pod may be put on."""
    required = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    (field,) = term["matchFields"]
    (node,) = field["values"]
    return str(node)


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
