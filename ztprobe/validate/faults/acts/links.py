"""Acts on the kernel's settings in a pod, and on its link."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from pathlib import Path

from ztprobe.agent.emulator import Emulator
from ztprobe.kernelnet.netlink import netlink
from ztprobe.kernelnet.netns import entered
from ztprobe.profile.model import Profile
from ztprobe.runtime.local.runtime import LocalRuntime
from ztprobe.validate.faults.acts.act import NODE, Do, Undo, namespace_of
from ztprobe.validate.faults.model import Preparation
from ztprobe.validate.inject.scene import Scene

__all__ = (
    "link_down",
    "link_mtu",
    "sysctl",
    "sysctl_before",
)


_ETH_P_IP = 0x0800


def sysctl(pod: str, name: str, value: str) -> Do:
    """Another setting in a pod's namespace, or the node's (`NODE`)."""

    def do(scene: Scene) -> Undo:
        netns, file = namespace_of(scene, pod), Path("/proc/sys", *name.split("."))

        def write(text: str) -> None:
            with entered(netns):
                file.write_text(text)

        with entered(netns):
            before = file.read_text().strip()
        write(value)
        return lambda: write(before)

    return do


def sysctl_before(pod: str, settings: Mapping[str, str]) -> Preparation:
    """Settings of a pod's namespace, or the node's (`NODE`), from before anything listens there."""

    def prepare(runtime: LocalRuntime, _: Path) -> None:
        namespaces = {NODE: runtime.node_netns} | {one.name: one.netns for one in runtime.pods}
        with entered(namespaces[pod]):
            for name, value in settings.items():
                Path("/proc/sys", *name.split(".")).write_text(value)

    return prepare


def other_profile(profile: Profile) -> Preparation:
    """A profile that somebody else has put on the run's pods before."""

    def prepare(runtime: LocalRuntime, directory: Path) -> Callable[[], None]:
        pods = [runtime.server, *runtime.clients]
        emulator = Emulator(profile, pods, runtime.node_netns, directory, 0)
        emulator.apply()
        return emulator.clear

    return prepare


def past_the_bridge(runtime: LocalRuntime, _: Path) -> None:
    """Packets handed from link to link by tc, as some CNIs do it: no filter on the bridge sees them."""
    pods = [runtime.server, *runtime.clients]
    with netlink(runtime.node_netns) as ipr:
        links = {pod.name: ipr.link_lookup(ifname=pod.host_interface)[0] for pod in pods}
        for source in pods:
            # tc qdisc add dev v-SOURCE ingress
            ipr.tc("add", "ingress", links[source.name], 0xFFFF0000)
            for number, target in enumerate((pod for pod in pods if pod != source), 1):
                # tc filter add dev v-SOURCE ingress u32 match ip dst TARGET
                #    action mirred egress redirect dev v-TARGET
                ipr.tc(
                    "add-filter",
                    "u32",
                    links[source.name],
                    parent=0xFFFF0000,
                    prio=number,
                    protocol=_ETH_P_IP,
                    target=0x10000,
                    keys=[f"0x{int(ipaddress.IPv4Address(target.address)):08x}/0xffffffff+16"],
                    action={
                        "kind": "mirred",
                        "direction": "egress",
                        "action": "redirect",
                        "ifindex": links[target.name],
                    },
                )


def link_mtu(pod: str, mtu_bytes: int) -> Do:
    """Another MTU at the node's end of a pod's link: what is longer is not forwarded, and nobody is told."""

    def do(scene: Scene) -> Undo:
        where = scene.pod(pod)

        def write(value: int) -> None:
            with netlink(where.node_netns) as ipr:
                ipr.link("set", index=ipr.link_lookup(ifname=where.host_interface)[0], mtu=value)

        with netlink(where.node_netns) as ipr:
            (link,) = ipr.get_links(ipr.link_lookup(ifname=where.host_interface)[0])
            before = link.get_attr("IFLA_MTU")
        write(mtu_bytes)
        return lambda: write(before)

    return do


def link_down(pod: str) -> Do:
    """The pod's link taken down at the node, as when its host loses power: nobody says goodbye."""

    def do(scene: Scene) -> Undo:
        where = scene.pod(pod)

        def write(state: str) -> None:
            with netlink(where.node_netns) as ipr:
                ipr.link("set", index=ipr.link_lookup(ifname=where.host_interface)[0], state=state)

        write("down")
        return lambda: write("up")

    return do
