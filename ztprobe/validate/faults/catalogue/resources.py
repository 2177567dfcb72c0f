"""Limits that are too low: of the kernel, of a pod's cgroup, of a proxy."""

from __future__ import annotations

from ztprobe.validate.faults.acts.act import Act
from ztprobe.validate.faults.acts.links import sysctl, sysctl_before
from ztprobe.validate.faults.acts.processes import limit_cpu, limit_files, limit_memory
from ztprobe.validate.faults.acts.strangers import half_open, track_at_most
from ztprobe.validate.faults.catalogue.words import OTHER, SERVER, TARGET, amid_round
from ztprobe.validate.faults.model import Fault, Variant
from ztprobe.validate.faults.objects import Edit, EditedObjects
from ztprobe.validate.inject.cpu import Competitor

__all__ = ("FAULTS",)

_PORTS = "net.ipv4.ip_local_port_range"
_BUFFER = "net.ipv4.tcp_rmem"
_KILLED = r"ended: .*out of memory"


def _memory(owner: str, container: str, limit: str) -> Edit:
    def edit(objects: EditedObjects) -> None:
        objects.container(owner, container)["resources"]["limits"] = {"memory": limit}

    return edit


def _queue(most: int) -> Edit:
    """The server's sidecar serves so many connections at once, and lets one more wait."""

    def edit(objects: EditedObjects) -> None:
        objects.replace("fl-server-proxy", "maxconn 4096", f"maxconn {most}")
        objects.replace("fl-server-proxy", ':50051" ssl', ':50051" backlog 1 ssl')

    return edit


def _checkpoints(objects: EditedObjects) -> None:
    # A pod's /run holds 1 MB here, and the model has 4.8 MB.
    objects.set_env("fl-server", "server", {"FL_CHECKPOINT_DIR": "/run"})


FAULTS = (
    Fault(
        cause="resources.oom_kill",
        variants=(
            Variant(
                what="a client's memory limit is lowered below what it needs in round 2",
                acts=(Act("memory", limit_memory(TARGET, "client", share=1.02), amid_round(2)),),
                shows=_KILLED,
                bulk=True,
                deadline_s=25,
            ),
            Variant(
                what="the server's memory limit is lowered below what it needs in round 2",
                acts=(Act("memory", limit_memory(SERVER, "server", share=1.01), amid_round(2)),),
                shows=_KILLED,
                level=1,
                bulk=True,
                deadline_s=25,
            ),
            Variant(
                what="the clients have a memory limit of 12 MiB",
                edit=_memory("fl-client", "client", "12Mi"),
                shows=_KILLED,
                level=2,
                bulk=True,
                deadline_s=25,
            ),
        ),
    ),
    Fault(
        cause="resources.cpu_throttling",
        variants=(
            Variant(
                what="a client has 2 % of a CPU from round 2 on",
                acts=(Act("cpu", limit_cpu(TARGET, "client", 0.02), amid_round(2)),),
                shows="throttled",
                compute_ms=300,
            ),
            Variant(
                what="a client has 4 % of a CPU from the start",
                acts=(Act("cpu", limit_cpu(OTHER, "client", 0.04), amid_round(1)),),
                shows="throttled",
                level=1,
                compute_ms=600,
            ),
            Variant(
                what="the server's sidecar has 1 % of a CPU from round 2 on",
                acts=(Act("cpu", limit_cpu(SERVER, "proxy", 0.01), amid_round(2)),),
                shows="throttled",
                level=2,
                bulk=True,
            ),
        ),
    ),
    Fault(
        cause="resources.cpu_contention",
        variants=tuple(
            Variant(
                what=f"{loops} busy loops on a client's only CPU in round {number}",
                level=level,
                acts=(Competitor(TARGET, "client", {number: loops}),),
                shows="done: competitor",
                rounds=5,
                compute_ms=800,
                deadline_s=30,
            )
            for loops, number, level in ((12, 3, 0), (10, 4, 1), (12, 3, 2))
        ),
    ),
    Fault(
        cause="resources.syn_queue_overflow",
        variants=tuple(
            Variant(
                what=f"a stranger's connection attempts stay half open at the server, {attempts} at a time",
                level=level,
                prepare=(sysctl_before(SERVER, {"net.ipv4.tcp_syncookies": "0", "net.core.somaxconn": "8"}),),
                acts=(Act("half open", half_open(attempts)),),
                shows="fl-server counts (TCPReqQFullDrop|ListenDrops)",
            )
            for attempts, level in ((20, 0), (40, 2), (60, 0))
        ),
    ),
    Fault(
        cause="resources.accept_queue_overflow",
        variants=(
            Variant(
                what="the server's sidecar serves one connection, and two wait",
                level=2,
                edit=_queue(1),
                shows="fl-server counts Listen",
                clients=5,
                compute_ms=50,
            ),
            Variant(
                what="the server's sidecar serves one connection, and two wait, with policies",
                level=3,
                edit=_queue(1),
                shows="fl-server counts Listen",
                clients=5,
                compute_ms=50,
            ),
            Variant(
                what="the server's sidecar serves two connections, and two wait",
                level=2,
                edit=_queue(2),
                shows="fl-server counts Listen",
                clients=6,
                compute_ms=50,
            ),
        ),
    ),
    Fault(
        cause="resources.descriptors",
        variants=(
            Variant(
                what="the server may open no more files",
                acts=(Act("files", limit_files(SERVER, "server", 0)),),
                shows="said: .*(Too many open files|too many|EMFILE)|done: files",
            ),
            Variant(
                what="the server may open one more file",
                level=1,
                acts=(Act("files", limit_files(SERVER, "server", 1)),),
                shows="done: files",
            ),
            Variant(
                what="the server's sidecar may open no more files",
                level=2,
                acts=(Act("files", limit_files(SERVER, "proxy", 0)),),
                shows="done: files",
            ),
        ),
    ),
    Fault(
        cause="resources.ephemeral_ports",
        variants=tuple(
            Variant(
                what=f"a client has {words}",
                level=level,
                acts=(Act("ports", sysctl(TARGET, _PORTS, ports)),),
                shows="fl-client-1.*(Cannot assign|address)|still trying|ended",
                modes=("reconnecting",),
                rounds=4,
            )
            for words, ports, level in (
                ("one ephemeral port", "40000 40000", 0),
                ("two ephemeral ports", "40000 40001", 1),
                ("one ephemeral port, with sidecars", "40000 40000", 2),
            )
        ),
    ),
    Fault(
        cause="resources.conntrack_full",
        variants=tuple(
            Variant(
                what=f"a stranger's {connections} connections fill the node's table",
                level=level,
                acts=(Act("table", track_at_most(connections)),),
                shows="done: table",
            )
            for connections, level in ((2000, 1), (1500, 1), (2500, 3))
        ),
    ),
    Fault(
        cause="resources.disk_full",
        variants=tuple(
            Variant(
                what="the server keeps the model on a disk that is too small",
                level=level,
                edit=_checkpoints,
                shows="No space left on device",
                bulk=True,
                deadline_s=25,
            )
            for level in (0, 1, 2)
        ),
    ),
    Fault(
        cause="resources.receive_buffer_full",
        variants=tuple(
            Variant(
                what=f"{words} take 4 kB at a time",
                level=level,
                prepare=tuple(sysctl_before(pod, {_BUFFER: "4096 4096 4096"}) for pod in pods),
                shows="came within",
                networks=("net2",),  # without a delay, even that is enough
                bulk=True,
            )
            for words, pods, level in (
                ("the server's sockets", (SERVER,), 0),
                ("the clients' sockets", (TARGET, OTHER), 1),
                ("the sockets of clients and their sidecars", (TARGET, OTHER), 2),
            )
        ),
    ),
)
