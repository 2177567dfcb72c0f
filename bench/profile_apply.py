"""Putting a profile on 200 pods: ztprobe beside as many `tc` processes, in one run on one core.

    make bench BENCH_ARGS='--only profile'

Both sides do the same to the same namespaces: enter one, put a token bucket (netem where the
kernel has it) on its eth0. ztprobe also looks for other qdiscs first and reads back what it set.
The two alternate; the figure is the median of the trials. The last row is the whole command,
from a shell to the prompt: interpreter, planning, the lease on disk, its keeper.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ztprobe.emulation.apply import put_into_force, revert
from ztprobe.emulation.attach_points import LEASE_HANDLE, plan_points
from ztprobe.emulation.netem import netem_supported
from ztprobe.kernelnet.netlink import create_netns, netlink, remove_netns
from ztprobe.kernelnet.netns import entered
from ztprobe.kernelnet.root_qdisc import remove_ours
from ztprobe.leases import records
from ztprobe.paths import REPO_DIR
from ztprobe.pods.local import local_pods
from ztprobe.pods.model import Pod
from ztprobe.process.identity import ProcessIdentity, started_ticks
from ztprobe.process.interrupts import shielded
from ztprobe.profile.model import Profile, load_profile
from ztprobe.rundir.temporary import scratch

__all__ = ("many_pods", "measure_apply", "whole_lease")

_TRIALS = 5
_TC = {
    "tbf": "rate 10mbit burst 4542 limit 166540",
    "netem": "delay 150ms limit 123844",
}


@contextlib.contextmanager
def many_pods(count: int, state: Path) -> Iterator[list[Pod]]:
    """Namespaces with an eth0 each, registered as the pods of a live run in ``state``."""
    tag = f"ztp-b{secrets.token_hex(3)}"
    with contextlib.ExitStack() as stack:
        node = create_netns(f"{tag}-node")
        stack.callback(remove_netns, f"{tag}-node")
        pods = []
        for number in range(count):
            name = f"{tag}-{number}"
            netns = create_netns(name)
            stack.callback(remove_netns, name)
            with netlink(node) as ipr:
                peer = {"ifname": "eth0", "net_ns_fd": str(netns)}
                ipr.link("add", ifname=f"v{number}", kind="veth", peer=peer)
            pods.append(
                Pod(
                    name=f"p{number}",
                    namespace="fl",
                    labels={"app": "many"},
                    address=f"10.98.{number >> 8}.{number & 255}",
                    netns=netns,
                    netns_inode=os.stat(netns).st_ino,
                    interface="eth0",
                    host_interface=f"v{number}",
                    node_netns=node,
                    run=tag,
                )
            )
        owner = {"pid": os.getpid(), "started_ticks": started_ticks(os.getpid())}
        (state / tag).mkdir(parents=True)
        listed = [{k: v for k, v in pod.as_dict().items() if k != "run"} for pod in pods]
        (state / tag / "journal.json").write_text(json.dumps({"owner": owner, "pods": listed}))
        yield pods


def whole_lease(profile: Profile, pods: Sequence[Pod], backend: str, held_s: int) -> records.Lease:
    """A lease of ours on what all ``pods`` send, planned and not yet in force."""
    now_ns = records.now_ns()
    return records.Lease(
        id=records.new_id(),
        profile=profile,
        backend=backend,
        direction="egress",
        selector="",
        to=None,
        namespace="fl",
        pods=tuple(pods),
        peers=None,
        points=plan_points(pods, ("egress",), backend, replace=False),
        rules=(),
        owner=ProcessIdentity.own(),
        created_ns=now_ns,
        expires_ns=now_ns + held_s * 10**9,
    )


def ztprobe_s(pods: Sequence[Pod], profile_name: str, backend: str) -> float:
    """Attach to every pod in this process, look and read-back included; then take it away."""
    started = time.perf_counter()
    lease = whole_lease(load_profile(profile_name), pods, backend, held_s=60)
    put_into_force(lease)
    took_s = time.perf_counter() - started
    revert(lease)
    return took_s


def tc_s(pods: Sequence[Pod], backend: str) -> float:
    """As many tc processes; then take it away."""
    add = ["tc", "qdisc", "add", "dev", "eth0", "root", "handle", "5a71:", backend, *_TC[backend].split()]
    started = time.perf_counter()
    for pod in pods:
        with entered(pod.netns):
            subprocess.run(add, check=True)
    took_s = time.perf_counter() - started
    for pod in pods:
        with netlink(pod.netns) as ipr:
            remove_ours(ipr, ipr.link_lookup(ifname="eth0")[0], LEASE_HANDLE)
    return took_s


def command_s(profile_name: str, state: Path) -> float:
    """The whole command, then `clear`."""
    environment = {**os.environ, "ZTPROBE_STATE_DIR": str(state)}

    def run(*words: str) -> None:
        command = [sys.executable, "-m", "ztprobe", "profile", *words]
        done = subprocess.run(command, cwd=REPO_DIR, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or [f"{words[0]} failed"])[-1])

    started = time.perf_counter()
    try:
        run("apply", profile_name, "--selector", "app=many", "--for", "2m")
        return time.perf_counter() - started
    finally:
        with shielded():
            run("clear")


def measure_apply(count: int = 200) -> dict[str, Any]:
    """Both sides in turn on ``count`` pods; needs root.

    :returns: ``backend``, ``pods``, ``ztprobe_s``, ``tc_processes_s``, ``times_as_fast``, ``command_s``
        and ``trials_s``.
    """
    profile_name, backend = ("net4", "netem") if netem_supported() else ("net5", "tbf")
    before = os.sched_getaffinity(0)
    with scratch() as state, many_pods(count, state) as pods:
        assert len(local_pods(state)) == count
        os.sched_setaffinity(0, {min(before)})
        try:
            trials = [(ztprobe_s(pods, profile_name, backend), tc_s(pods, backend)) for _ in range(_TRIALS)]
            whole_s = command_s(profile_name, state)
        finally:
            os.sched_setaffinity(0, before)
    ours_s, tc_processes_s = (statistics.median(column) for column in zip(*trials, strict=True))
    return {
        "pods": count,
        "backend": backend,
        "ztprobe_s": round(ours_s, 4),
        "tc_processes_s": round(tc_processes_s, 4),
        "times_as_fast": round(tc_processes_s / ours_s, 2),
        "command_s": round(whole_s, 3),
        "trials_s": trials,
    }
