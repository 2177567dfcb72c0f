"""Filters that a killed agent has left on others' interfaces are found by name and taken away."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.kernel.pods import two_pods
from ztprobe.attach import leftovers
from ztprobe.kernelnet.clsact import EGRESS, INGRESS, add_clsact, has_clsact, has_named
from ztprobe.kernelnet.netlink import netlink

_REPO_DIR = Path(__file__).resolve().parents[2]
# An agent on a kernel without tcx, which is killed while it watches.
_AGENT = """
import sys, time
from pathlib import Path
from ztprobe.probes.kernel import KernelProbes
kernel = KernelProbes(tcx=False)
kernel.load()
kernel.attach()
kernel.attach_interface(Path(sys.argv[1]), "eth0")
print("attached", flush=True)
time.sleep(100)
"""


def test_filters_of_a_killed_agent_go_and_others_stay() -> None:
    with two_pods() as (a, b):
        with netlink(b.netns) as ipr:
            (index,) = ipr.link_lookup(ifname="eth0")
            add_clsact(ipr, index)  # somebody else's, and empty
        agent = subprocess.Popen(
            [sys.executable, "-c", _AGENT, str(a.netns)], cwd=_REPO_DIR, stdout=subprocess.PIPE, text=True
        )
        assert agent.stdout is not None
        assert agent.stdout.readline() == "attached\n"
        agent.send_signal(signal.SIGKILL)
        agent.wait()
        agent.stdout.close()
        with netlink(a.netns) as ipr:
            (index,) = ipr.link_lookup(ifname="eth0")
            assert has_named(ipr, index, EGRESS, "tc_eth_out")
            assert has_named(ipr, index, INGRESS, "tc_eth_in")
        said = [line for line in leftovers.sweep() if a.name in line]
        assert sorted(said) == [
            f"probe {program} on {device} in {a.name} removed"
            for program, device in (("tc_eth_in", "eth0"), ("tc_eth_out", "eth0"), ("tc_lo_out", "lo"))
        ]
        with netlink(a.netns) as ipr:
            assert not any(has_clsact(ipr, link["index"]) for link in ipr.get_links())
        with netlink(b.netns) as ipr:
            (index,) = ipr.link_lookup(ifname="eth0")
            assert has_clsact(ipr, index)
