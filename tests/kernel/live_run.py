"""A node with three pods that looks like a live run, for `ztprobe profile` to act on."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.bridged import delays_ms, pod_at, wait_until_reachable
from ztprobe.emulation.netem import netem_supported
from ztprobe.kernelnet.netlink import create_netns, netlink, remove_netns
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.pods.model import Pod

NAMES = ("server", "client-0", "client-1")
# Software emulation of a CPU takes ten times as long for everything (tools/test-vm), and a delay has
# to be ten times as long to stand out from that.
PATIENCE = float(os.environ.get("ZTPROBE_TEST_PATIENCE", "1"))


@dataclass(frozen=True)
class Cluster:
    """A node with three pods, registered as a live run in a state directory of its own."""

    state: Path
    node: Path
    pods: dict[str, Pod]

    def ztprobe(self, *words: str, fails: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command; it must exit with that status (None: with any)."""
        done = subprocess.run(
            [sys.executable, "-m", "ztprobe", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=REPO_DIR,
            env={**os.environ, "ZTPROBE_STATE_DIR": str(self.state)},
        )
        assert fails in (None, done.returncode), (words, done.stdout, done.stderr)
        return done

    def profile(self, *words: str, fails: int = 0) -> Any:
        """Run `ztprobe profile ... --json`."""
        done = self.ztprobe("profile", *words, "--json", fails=None if words[0] == "verify" else fails)
        return json.loads(done.stdout)

    def delay_ms(self, a: str, b: str, count: int = 21) -> float:
        """Median one-way delay, counted independently."""
        return statistics.median(delays_ms(self.pods[a], self.pods[b], count=count, gap_s=0.003))

    def keeper(self, lease: str) -> int:
        """The process that keeps a lease."""
        text = (self.state / "leases" / lease / "lease.json").read_text()
        return int(json.loads(text)["owner"]["pid"])

    def kill_both_keepers(self, lease: str) -> None:
        """Neither gets to see the other's end."""
        worker = self.keeper(lease)
        keepers = (worker, parent_of(worker))  # before the worker's parent is another one
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in keepers:
                os.kill(pid, number)

    def marks(self) -> list[str]:
        """What is on interfaces and in tables, besides the kernel's defaults."""
        found = []
        for place in (self.node, *(pod.netns for pod in self.pods.values())):
            with entered(place):
                for command in (["tc", "qdisc", "show"], ["iptables-save"]):
                    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
                    found += [
                        line
                        for line in text.splitlines()
                        if "ZTPROBE" in line or "NFQUEUE" in line or "5a7" in line
                    ]
        return found

    def await_nothing(self, seconds: float) -> None:
        """Until nothing is left, or fail."""
        deadline = time.monotonic() + seconds * PATIENCE
        while (self.marks() or (self.state / "leases").exists()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.marks() == []
        assert not (self.state / "leases").exists()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Made for one test, and removed with everything inside."""
    tag = f"ztp-t{secrets.token_hex(3)}"
    with contextlib.ExitStack() as stack:
        spaces = {}
        for name in ("node", *NAMES):
            spaces[name] = create_netns(f"{tag}-{name}")
            stack.callback(_remove, f"{tag}-{name}")
        pods = {
            name: pod_at(
                name,
                f"10.99.0.{i}",
                spaces[name],
                f"v-{name}",
                node=spaces["node"],
                app=name.partition("-")[0],
                pod=name,
            )
            for i, name in enumerate(NAMES, 1)
        }
        with netlink(spaces["node"]) as ipr:
            ipr.link("add", ifname="cni0", kind="bridge")
            (bridge,) = ipr.link_lookup(ifname="cni0")
            ipr.link("set", index=bridge, state="up")
            for pod in pods.values():
                peer = {"ifname": "eth0", "net_ns_fd": str(pod.netns)}
                ipr.link("add", ifname=pod.host_interface, kind="veth", peer=peer)
                (index,) = ipr.link_lookup(ifname=pod.host_interface)
                ipr.link("set", index=index, master=bridge, state="up")
        for pod in pods.values():
            with netlink(pod.netns) as ipr:
                (index,) = ipr.link_lookup(ifname="eth0")
                ipr.addr("add", index=index, address=pod.address, prefixlen=24)
                ipr.link("set", index=index, state="up")
        run = tmp_path / "state" / tag
        run.mkdir(parents=True)
        journal = {
            "owner": {"pid": os.getpid(), "started_ticks": _ticks(os.getpid())},
            "pods": [pod.as_dict() for pod in pods.values()],
        }
        (run / "journal.json").write_text(json.dumps(journal))
        for pair in itertools.combinations(pods.values(), 2):
            wait_until_reachable(*pair)
        made = Cluster(tmp_path / "state", spaces["node"], pods)
        try:
            yield made
        finally:
            made.ztprobe("profile", "clear")


def _remove(namespace: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # a test has done it
        remove_netns(namespace)


def _ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.fixture(params=["nfqueue", pytest.param("netem", marks=pytest.mark.optional)])
def backend(request: pytest.FixtureRequest) -> str:
    """Both ways to delay; netem where the kernel has it."""
    if request.param == "netem" and not netem_supported():
        pytest.skip("no netem (CONFIG_NET_SCH_NETEM)")
    return str(request.param)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def profile_file(tmp_path: Path, text: str) -> str:
    keys = [word.partition(":")[0] for word in text.splitlines()]
    keys = ["samples" if key == "samples_ms" else key for key in keys]
    sources = ", ".join(f"{key}: test" for key in keys)
    path = tmp_path / "test.yaml"
    path.write_text(f"name: test\ndescription: a test\n{text}\nsource: {{{sources}}}\n")
    return str(path)
