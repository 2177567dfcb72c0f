"""Pods as their first processes appear: seen once, looked at while young, forgotten at their end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ztprobe.pods.sightings import Sightings

UID = "0a1b2c3d-0000-4000-8000-00000000000a"
POD = f"0::/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{'a' * 64}.scope\n"
SYSTEM = "0::/system.slice/containerd.service\n"


class Machine:
    """Stands for /proc, with a clock of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.now_s, self.newest = root, 100.0, 0
        for name in ("1", "self"):
            self.begin(name, SYSTEM, netns="host")

    def begin(self, pid: int | str, cgroups: str, *, netns: str) -> None:
        """A process, in the network of that name."""
        (self.root / str(pid) / "ns").mkdir(parents=True)
        self.move(pid, cgroups, netns=netns)
        self.newest += 1
        (self.root / "loadavg").write_text(f"0.1 0.1 0.1 1/200 {self.newest}\n")

    def move(self, pid: int | str, cgroups: str, *, netns: str) -> None:
        (self.root / str(pid) / "cgroup").write_text(cgroups)
        space = self.root / f"netns-{netns}"
        space.touch()
        link = self.root / str(pid) / "ns" / "net"
        link.unlink(missing_ok=True)
        link.symlink_to(space)

    def end(self, pid: int) -> None:
        shutil.rmtree(self.root / str(pid))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def sightings(machine: Machine) -> Sightings:
    return Sightings(machine.root, clock=lambda: machine.now_s)


def test_a_process_that_moves_into_a_pod_is_seen_with_the_time_before(
    machine: Machine, sightings: Sightings
) -> None:
    sightings.look()
    assert sightings.pods == {}
    machine.now_s += 0.02
    machine.begin(20, SYSTEM, netns="host")
    sightings.look()
    machine.now_s += 0.02
    sightings.look()
    assert sightings.pods == {}
    machine.move(20, POD, netns="host")  # no new process, and it is young
    machine.now_s += 0.02
    sightings.look()
    one = sightings.pods[UID]
    assert (one.pids, one.since_s) == ((20,), machine.now_s)
    assert one.unseen_s == pytest.approx(machine.now_s - 0.02)
    # Still in the network of whoever starts it: that is not the pod's.
    assert sightings.netns(UID) is None
    machine.move(20, POD, netns="pod")
    assert sightings.netns(UID) == machine.root / "20/ns/net"


def test_what_ran_before_the_first_look_has_no_time_before(machine: Machine, sightings: Sightings) -> None:
    machine.begin(20, POD, netns="pod")
    sightings.look()
    one = sightings.pods[UID]
    assert one.unseen_s == one.since_s


def test_as_long_as_nothing_begins_only_young_ones_are_read(machine: Machine, sightings: Sightings) -> None:
    machine.begin(20, SYSTEM, netns="host")
    sightings.look()
    machine.now_s += 5
    sightings.look()  # it has grown up
    machine.move(20, POD, netns="pod")
    machine.now_s += 0.02
    sightings.look()
    assert sightings.pods == {}


def test_a_pod_ends_with_its_last_process(machine: Machine, sightings: Sightings) -> None:
    machine.begin(20, POD, netns="pod")
    machine.begin(21, POD, netns="pod")
    sightings.look()
    machine.end(20)
    assert sightings.netns(UID) == machine.root / "21/ns/net"
    machine.now_s += 1.5
    sightings.look()
    assert sightings.pods[UID].pids == (21,)
    machine.end(21)
    assert sightings.netns(UID) is None
    machine.now_s += 1.5
    sightings.look()
    assert sightings.pods == {}


def test_a_number_that_is_another_process_s_by_now_leads_nowhere(
    machine: Machine, sightings: Sightings
) -> None:
    machine.begin(20, POD, netns="pod")
    sightings.look()
    machine.move(20, SYSTEM, netns="another")
    assert sightings.netns(UID) is None
