"""A pod's containers as kubelet and a container runtime run them, one step at a time.

They are processes in cgroups and mount namespaces of their own: init containers one after another, those that
go on (sidecars) until the application has ended, started again if they end before. Volumes hold what the API
has. Logs are written as kubelet writes them, and the pod's status says what happened.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.kernel.cluster import KubeNode, KubePod
from tests.kernel.newer_api import sidecars_of
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.runtime.local import dns

__all__ = ("DNS_ADDRESS", "LAYOUT", "RunningPod")

LAYOUT = "v2-systemd"
DNS_ADDRESS = "10.98.0.53"
_GRACE_S = 5.0
_WAITING = {"state": {"waiting": {"reason": "PodInitializing"}}}
_BLANK = {"image": "", "imageID": "", "ready": False, "restartCount": 0}


@dataclass
class _Container:
    """One that has been started."""

    process: subprocess.Popen[bytes]
    writer: threading.Thread
    status: dict[str, Any] = field(default_factory=dict)


class RunningPod:
    """Begins with nothing; `proceed` does what is next.

    :param logs: where containers' logs go.
    :param report: tells the API the pod's status.
    :param problem: what keeps every image from being pulled; None: all of them are there.
    """

    def __init__(
        self,
        logs: Path,
        report: Callable[[dict[str, Any], dict[str, Any]], None],
        node: KubeNode,
        pod: dict[str, Any],
        sandbox: KubePod,
        problem: str | None,
    ) -> None:
        metadata, self._spec = pod["metadata"], pod["spec"]
        self.name, self.uid, self.namespace = metadata["name"], metadata["uid"], metadata["namespace"]
        self.app, self.sandbox = metadata["labels"]["app"], sandbox
        self._logs, self._report_to, self._node, self._pod, self._problem = logs, report, node, pod, problem
        self._init = list(self._spec.get("initContainers", ()))
        self._containers = [*self._init, *self._spec["containers"]]
        self._sidecars = sidecars_of(pod)
        self._at = 0
        self._begun: dict[str, _Container] = {}
        self._failed = False
        self._said: dict[str, Any] = {}
        self._volumes = node.directory / "volumes" / self.uid

    def pid(self, container: str) -> int:
        """Of a container's first process."""
        return self._begun[container].process.pid

    def proceed(self) -> None:
        """Start what is next, or see how what runs has ended."""
        if not self._is_over:
            for name in self._sidecars & self._begun.keys():
                if self._has_ended(name):  # it is to go on
                    self._begin(next(one for one in self._containers if one["name"] == name))
            self._step(self._containers[self._at])
            if self._is_over:
                self._end_sidecars()
        self._report()

    @property
    def _is_over(self) -> bool:
        return self._failed or self._at == len(self._containers)

    def _step(self, container: dict[str, Any]) -> None:
        name = container["name"]
        if name not in self._begun:
            if self._problem is None:
                self._begin(container)
        elif name in self._sidecars:
            self._at += self._is_started(container)
        elif self._has_ended(name):
            self._failed = self._begun[name].status["state"]["terminated"]["exitCode"] != 0
            self._at += 1

    def _has_ended(self, name: str) -> bool:
        one = self._begun[name]
        if one.process.poll() is None:
            return False
        one.writer.join()  # a container's log is whole before its end is told
        status = one.process.returncode
        code = 128 - status if status < 0 else status
        ended = {"exitCode": code, "reason": "Error" if code else "Completed"}
        one.status["state"] = {"terminated": ended}
        return True

    def _is_started(self, container: dict[str, Any]) -> bool:
        probe = container.get("startupProbe")
        if probe is None:
            return True
        with entered(self.sandbox.netns):
            command = probe["exec"]["command"]
            return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def _end_sidecars(self) -> None:
        for name in self._sidecars & self._begun.keys():
            one = self._begun[name]
            one.process.terminate()
            try:
                one.process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                one.process.kill()
            self._has_ended(name)

    def _begin(self, container: dict[str, Any]) -> None:
        name, identity = container["name"], secrets.token_hex(32)
        before = self._begun[name].status if name in self._begun else None
        count = before["restartCount"] + 1 if before is not None else 0
        log = self._logs / f"{self.namespace}_{self.name}_{self.uid}" / name / f"{count}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        groups = self._node.container_cgroups(self.uid, LAYOUT, identity)
        with entered(self.sandbox.netns):
            process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", self._mounts(container, groups), *container["command"]],
                cwd=REPO_DIR,
                env=self._environment(container),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        writer = threading.Thread(target=_keep_logs, args=(process, log), daemon=True)
        writer.start()
        status: dict[str, Any] = {"containerID": f"containerd://{identity}", "state": {"running": {}}}
        status["restartCount"] = count
        if before is not None:
            status["lastState"] = before["state"]
        self._begun[name] = _Container(process, writer, status)

    def _mounts(self, container: dict[str, Any], groups: list[Path]) -> str:
        """A shell's words that join the cgroups, put the pod's volumes into place, and become the program."""
        resolv = self._volumes / "resolv.conf"
        resolv.parent.mkdir(parents=True, exist_ok=True)
        resolv.write_text(dns.resolv_conf(DNS_ADDRESS, self.namespace))
        lines = [f"echo $$ > {group}/cgroup.procs" for group in groups]
        lines += ["mount -t tmpfs none /run", f"mount --bind {resolv} /etc/resolv.conf"]
        for mount in container.get("volumeMounts", ()):
            directory = self._volume(mount["name"])
            lines += [f"mkdir -p {mount['mountPath']}", f"mount --bind {directory} {mount['mountPath']}"]
        return " && ".join([*lines, 'exec "$0" "$@"'])

    def _volume(self, name: str) -> Path:
        directory = self._volumes / name
        if directory.exists():
            return directory
        directory.mkdir()
        (volume,) = (one for one in self._spec.get("volumes", ()) if one["name"] == name)
        if "configMap" in volume:
            for file, text in self._object("configmaps", volume["configMap"]["name"]).items():
                (directory / file).write_text(text)
        elif "secret" in volume:
            for file, text in self._object("secrets", volume["secret"]["secretName"]).items():
                (directory / file).write_bytes(base64.b64decode(text))
        return directory

    def _object(self, kind: str, name: str) -> dict[str, str]:
        data: dict[str, str] = self._node.call("GET", f"/api/v1/namespaces/{self.namespace}/{kind}/{name}")[
            "data"
        ]
        return data

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        found = {"PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"}
        for source in container.get("envFrom", ()):
            found |= self._object("configmaps", source["configMapRef"]["name"])
        for one in container.get("env", ()):
            found[one["name"]] = self.name if "valueFrom" in one else one.get("value", "")
        return found

    def _report(self) -> None:
        phase = "Pending" if self._at < len(self._init) else "Running"
        status: dict[str, Any] = {
            "phase": ("Failed" if self._failed else "Succeeded") if self._is_over else phase,
            "podIP": self.sandbox.address,
            "podIPs": [{"ip": self.sandbox.address}],
        }
        sections = {"initContainerStatuses": self._init, "containerStatuses": self._spec["containers"]}
        for section, part in sections.items():
            status[section] = [_BLANK | {"name": one["name"]} | self._state(one["name"]) for one in part]
        if status != self._said:
            self._report_to(self._pod, status)
            self._said = status

    def _state(self, name: str) -> dict[str, Any]:
        if name in self._begun:
            return dict(self._begun[name].status)
        if self._problem is not None and name == self._containers[self._at]["name"]:
            waiting = {"reason": self._problem, "message": "no such image in any registry"}
            return {"state": {"waiting": waiting}}
        return _WAITING

    def kill(self, container: str | None = None) -> None:
        """End what runs. :param container: this one alone; None: all of them."""
        for name, one in self._begun.items():
            if container in (None, name) and one.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    one.process.kill()
                one.process.wait()
        for group in self._groups() if container is None else ():
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

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
