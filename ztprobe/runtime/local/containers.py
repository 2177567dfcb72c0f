"""Start a pod's containers from their plans, and tell how they ended.

Everything a container sees besides the machine's own files is prepared here: resolver
files, volumes, environment, cgroup, log files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from ztprobe.errors import PreflightError
from ztprobe.pods.local import log_name
from ztprobe.pods.model import Pod
from ztprobe.rundir import files, logs
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local import dns
from ztprobe.runtime.local.cgroups import Tree
from ztprobe.runtime.local.journal import Journal
from ztprobe.runtime.local.processes import ContainerSpec, Preload, Zygote
from ztprobe.runtime.local.workload import ContainerPlan, Mount, PodPlan, Workload

__all__ = ("PATH", "Containers", "create_cgroups", "forked_module", "preload_for")

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CGROUP = "runtime"  # the zygotes' own
_BASE_ENV = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
_RESOLVER_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")


def forked_module(command: tuple[str, ...]) -> str | None:
    """The module of ``python -m fl.X``, which is forked from the warm zygote; None for other programs."""
    if command[:2] == ("python", "-m") and len(command) > 2 and command[2].startswith("fl."):
        return command[2]
    return None


def preload_for(workload: Workload, options: WorkloadOptions) -> Preload | None:
    """What the warm zygote loads for this workload; None: nothing is forked from it."""
    if not any(forked_module(pod.application.command) for pod in workload.pods):
        return None
    data_dir = options.data_dir
    return Preload(
        # PyTorch in the parent would be in every client that does not compute, too.
        module="fl.preload_light" if options.fl.get("client") == "synthetic" else "fl.preload",
        dataset=options.dataset,
        data_dir=None if data_dir is None else str(data_dir.absolute()),
    )


def create_cgroups(journal: Journal, tree: Tree, pods: Iterable[PodPlan], *, cpu_limits: bool) -> None:
    """A group for each container with the limits that its manifest names, and one for the name server.

    :param cpu_limits: apply those of CPU time, too.
    """
    enable = tree.controllers_to_enable()
    if enable is not None:
        control, missing = enable
        for controller in missing:
            journal.lasting_setting(control, f"+{controller}", f"-{controller}")
    for pod in pods:
        for container in pod.containers:
            tree.create(
                pod.name,
                container.name,
                memory_bytes=container.memory_limit_bytes,
                cpus=container.cpu_limit if cpu_limits else None,
            )
    tree.create(dns.POD, "dnsmasq")


class Containers:
    """The container runtime of one run. Use it from one thread that lives as long as the run."""

    def __init__(self, journal: Journal, tree: Tree, log_dir: Path, preload: Preload | None) -> None:
        """Start the zygotes; they warm up by themselves.

        :param preload: for containers of the workload; None if there are none.
        """
        self._journal = journal
        self._tree = tree
        self._log_dir = log_dir
        self._running: dict[str, int] = {}  # POD/CONTAINER -> pid
        joins = tree.create(_CGROUP)
        log = log_dir / "runtime.log"
        self._bare = Zygote(joins, log)
        journal.process(self._bare.pid)
        self._warm = None if preload is None else Zygote(joins, log, preload)
        if self._warm is not None:
            journal.process(self._warm.pid)

    @property
    def warm_up_s(self) -> float | None:
        """How long the workload took to load; None without one."""
        return None if self._warm is None else self._warm.warm_up_s

    @property
    def secrets_directory(self) -> Path:
        """Where the Secrets' contents go, one directory each."""
        return self._journal.directory / "secrets"

    def prepare(self, pod: Pod, nameserver: str, resolver_options: Sequence[str] = ()) -> None:
        """Write what the pod's containers will find in /etc."""
        directory = self._pod_directory(pod)
        directory.mkdir(parents=True)
        (directory / "resolv.conf").write_text(dns.resolv_conf(nameserver, pod.namespace, resolver_options))
        (directory / "hosts").write_text(f"127.0.0.1\tlocalhost\n{pod.address}\t{pod.name}\n")
        # The machine may ask systemd-resolved and the like first; a pod asks its DNS server.
        (directory / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")

    def _pod_directory(self, pod: Pod) -> Path:
        return self._journal.directory / "pods" / pod.name

    def launch(self, containers: list[tuple[Pod, ContainerPlan]]) -> None:
        """Start containers, all at once.

        :raises PreflightError: a program is not installed.
        :raises UsageError: the workload refuses its settings.
        :raises WorkloadError: they cannot be started.
        """
        specs = [self._spec(pod, container) for pod, container in containers]
        for zygote in (self._bare, self._warm):
            mine = [spec for spec in specs if (spec.module is not None) == (zygote is self._warm)]
            if mine and zygote is not None:
                for spec, pid in zip(mine, zygote.launch_all(mine), strict=True):
                    self._running[spec.key] = pid
                    self._journal.process(pid)

    def _spec(self, pod: Pod, container: ContainerPlan) -> ContainerSpec:
        module = forked_module(container.command)
        program = None
        if module is None:
            program = shutil.which(container.command[0], path=PATH) if container.command else None
            if program is None:
                command = " ".join(container.command)
                raise PreflightError(f"{pod.name}/{container.name}: no such program: {command!r}")
        directory = self._pod_directory(pod)
        log = self.log_path(pod.name, container.name)
        cgroups = (top.joinpath(pod.name, container.name) for top in self._tree.tops)
        return ContainerSpec(
            key=f"{pod.name}/{container.name}",
            pod=pod.name,
            netns=str(pod.netns),
            cgroup_procs=tuple(str(cgroup / "cgroup.procs") for cgroup in cgroups),
            command=container.command,
            program=program,
            module=module,
            env=_BASE_ENV | dict(container.env),
            stdout=str(log),
            stderr=str(log if container.one_log else log.with_suffix(".err")),
            files={name: str(directory / Path(name).name) for name in _RESOLVER_FILES if Path(name).exists()},
            volumes={str(mount.path): str(self._filled(pod, mount)) for mount in container.mounts},
        )

    def _filled(self, pod: Pod, mount: Mount) -> Path:
        if mount.secret is not None:
            return self.secrets_directory / mount.secret
        source = self.volume(pod, mount.path)
        source.mkdir(parents=True, exist_ok=True)
        for name, text in mount.files.items():
            (source / name).write_text(text)
        return source

    def volume(self, pod: Pod, path: PurePosixPath) -> Path:
        """Where on this machine the files are that the pod's containers see at ``path``."""
        return self._pod_directory(pod) / "volumes" / str(path).strip("/").replace("/", "-")

    def renew(self, pod: Pod, file: PurePosixPath, text: str) -> None:
        """Change a file that the pod's containers see, as the kubelet does with a ConfigMap's."""
        files.write_whole(self.volume(pod, file.parent) / file.name, text.encode(), make=0o755)

    def pid(self, pod: str, container: str) -> int:
        """Of a container that was started. :raises KeyError: it was not."""
        return self._running[f"{pod}/{container}"]

    def exits(self) -> dict[str, int]:
        """POD/CONTAINER -> exit status (negative: the signal) of all that have ended."""
        return self._bare.poll() | ({} if self._warm is None else self._warm.poll())

    def ended(self, pods: Sequence[str]) -> list[tuple[str, str, int]]:
        """Pod, container and exit status of all that have ended, whoever may have brought it about first.

        That is who was killed before who ended by itself, and then those who are served by somebody after it.

        :param pods: their names, servers before their clients.
        """
        order = {pod: number for number, pod in enumerate(pods)}
        found = [(*key.partition("/")[::2], status) for key, status in self.exits().items()]
        return sorted(found, key=lambda one: (one[2] > 0, order.get(one[0], -1), one))

    def log_path(self, pod: str, container: str) -> Path:
        """Standard output; standard error is beside it as ``.err``."""
        return self._log_dir / log_name(pod, container)

    def last_words(self, pod: str, container: str) -> str:
        """The last lines that a container wrote, on one line, and where the rest is."""
        return logs.last_words(self.log_path(pod, container))

    def close(self) -> None:
        """End every container. Idempotent."""
        for zygote in (self._warm, self._bare):
            if zygote is not None:
                zygote.close()
