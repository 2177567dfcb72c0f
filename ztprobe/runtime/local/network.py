"""The node and its pods as network namespaces.

The node is a namespace of its own with a bridge; a pod is a namespace whose ``eth0``
is one end of a veth pair, the other end being a port of that bridge. br_netfilter
hands every bridged packet to the node's IPv4 hooks, where policies and a delay line
act. Nothing of this touches the machine's own namespace, so no address range can be
taken: 10.244.0.0/24 exists inside these namespaces only.

Neighbours and forwarding entries are written down instead of learned: a lost ARP
request would stall a connection for a second, and a flooded frame would show up in
pods that it is not for.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ztprobe.errors import PreflightError, UsageError
from ztprobe.kernelnet import netlink
from ztprobe.kernelnet.netns import entered, inode
from ztprobe.pods.model import Pod

__all__ = (
    "MTU_BYTES",
    "NodeNetwork",
    "PodAddress",
    "addresses",
    "one_by_one",
    "read_sysctl",
    "write_sysctl",
)

MTU_BYTES = 1500
_BRIDGE = "cni0"
_BRIDGE_SYSCTLS = "net.bridge"
_NETWORK = "10.244.0"
_PREFIX_LENGTH = 24
_FIRST_HOST = 2  # the bridge has 1
_LAST_HOST = 254
_FIRST_INTERFACE_INDEX = 1000

_NUD_PERMANENT = 0x80  # include/uapi/linux/neighbour.h
_NUD_NOARP = 0x40
_NTF_MASTER = 0x04

_SIOCETHTOOL = 0x8946  # include/uapi/linux/ethtool.h
_OFFLOADS = {"tso": 0x1F, "gso": 0x24, "gro": 0x2C}


@dataclass(frozen=True, kw_only=True)
class PodAddress:
    """Where a pod is, before it exists."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    # between application and sidecar on the pod's own loopback (server: the application's, client:
    # the sidecar's); None without a sidecar
    loopback_port: int | None
    number: int  # of the pod on its node, from 0

    @property
    def address(self) -> str:
        """IPv4."""
        return f"{_NETWORK}.{_FIRST_HOST + self.number}"

    @property
    def interface_index(self) -> int:
        """Of the interface inside the pod; unique among the pods of a node."""
        return _FIRST_INTERFACE_INDEX + self.number

    @property
    def hardware_address(self) -> str:
        """Locally administered, with the IPv4 address in it, as many runtimes do."""
        return "02:00:" + ":".join(f"{int(part):02x}" for part in self.address.split("."))


def addresses(count: int) -> None:
    """Refuse more pods than the node's network holds.

    :raises UsageError: too many.
    """
    room = _LAST_HOST - _FIRST_HOST + 1
    if count > room:
        raise UsageError(
            f"{count} pods do not fit the node's network ({room} addresses in {_NETWORK}.0/24): "
            f"--clients can be at most {room - 3} here"
        )


def write_sysctl(netns: Path, name: str, value: str) -> None:
    """Set e.g. ``net.ipv4.tcp_no_metrics_save`` inside a namespace. :raises OSError: refused."""
    with entered(netns):
        _sysctl_file(name).write_text(value)


def read_sysctl(netns: Path, name: str) -> str | None:
    """Read a setting inside a namespace; None if the kernel has no such setting there."""
    with entered(netns), suppress(OSError):
        return " ".join(_sysctl_file(name).read_text().split())
    return None


def _sysctl_file(name: str) -> Path:
    return Path("/proc/sys", *name.split("."))


class NodeNetwork:
    """The forwarding namespace and the pods around it."""

    def __init__(self, run: str, offloads: bool) -> None:
        self._run = run
        self.prefix = f"ztp-{run}"
        self.netns = self.path("node")
        self._offloads = offloads
        self._bridge_index = 0

    def name(self, pod: str) -> str:
        """The namespace's name for a pod of this node."""
        return f"{self.prefix}-{pod}"

    def path(self, pod: str) -> Path:
        """Where that namespace is bound."""
        return Path("/run/netns") / self.name(pod)

    def create(self) -> None:
        """Make the node's namespace with its bridge.

        :raises UsageError: the name is taken.
        :raises PreflightError: br_netfilter is missing.
        """
        self._make_namespace("node")
        self._hand_bridged_packets_to_netfilter()
        write_sysctl(self.netns, "net.ipv6.conf.all.disable_ipv6", "1")
        with netlink.netlink(self.netns) as ipr:
            # ip link add cni0 type bridge mcast_snooping 0; ip link set cni0 up
            ipr.link("add", ifname=_BRIDGE, kind="bridge", br_mcast_snooping=0)
            self._bridge_index = ipr.link_lookup(ifname=_BRIDGE)[0]
            ipr.link("set", index=self._bridge_index, state="up")
            ipr.link("set", index=1, state="up")
            ipr.addr("add", index=self._bridge_index, address=f"{_NETWORK}.1", prefixlen=_PREFIX_LENGTH)

    def _make_namespace(self, pod: str) -> Path:
        try:
            return netlink.create_netns(self.name(pod))
        except FileExistsError as error:
            raise UsageError(
                f"network namespace {self.name(pod)} exists already: `ztprobe clean` removes dead runs"
            ) from error
        except OSError as error:
            raise PreflightError(f"cannot make a network namespace: {error}; are you root?") from error

    def _hand_bridged_packets_to_netfilter(self) -> None:
        name = f"{_BRIDGE_SYSCTLS}.bridge-nf-call-iptables"
        if read_sysctl(self.netns, name) is None:
            _load_br_netfilter()
        try:
            write_sysctl(self.netns, name, "1")
        except OSError as error:
            raise PreflightError(
                "the kernel has no br_netfilter (CONFIG_BRIDGE_NETFILTER), without which no policy or"
                " delay can act between pods: modprobe br_netfilter"
            ) from error

    def add(self, pod: PodAddress) -> Pod:
        """Make a pod's namespace and connect it to the bridge."""
        netns = self._make_namespace(pod.name)
        host_interface = f"v-{pod.name}" if len(pod.name) <= 13 else f"v-{pod.number}"
        for scope in ("all", "default"):
            if read_sysctl(netns, f"net.ipv6.conf.{scope}.disable_ipv6") is not None:
                write_sysctl(netns, f"net.ipv6.conf.{scope}.disable_ipv6", "1")
        self._make_interface(pod, netns, host_interface)
        self._make_bridge_port(pod, host_interface)
        return Pod(
            name=pod.name,
            namespace=pod.namespace,
            labels=dict(pod.labels),
            address=pod.address,
            netns=netns,
            netns_inode=inode(netns),
            interface="eth0",
            host_interface=host_interface,
            node_netns=self.netns,
            run=self._run,
        )

    def _make_interface(self, pod: PodAddress, netns: Path, host_interface: str) -> None:
        index = pod.interface_index
        node_fd = os.open(self.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with netlink.netlink(netns) as ipr:
                # ip link add eth0 index 1000 address 02:.. mtu 1500 type veth peer name v-POD netns NODE
                ipr.link(
                    "add",
                    ifname="eth0",
                    index=index,
                    kind="veth",
                    address=pod.hardware_address,
                    mtu=MTU_BYTES,
                    peer={"ifname": host_interface, "net_ns_fd": node_fd, "mtu": MTU_BYTES},
                )
                ipr.link("set", index=1, state="up")
                ipr.link("set", index=index, state="up")
                ipr.addr("add", index=index, address=pod.address, prefixlen=_PREFIX_LENGTH)
                ipr.route("add", dst="default", gateway=f"{_NETWORK}.1")
                if not self._offloads:
                    one_by_one(netns, "eth0")
        finally:
            os.close(node_fd)

    def _make_bridge_port(self, pod: PodAddress, host_interface: str) -> None:
        with netlink.netlink(self.netns) as ipr:
            port = ipr.link_lookup(ifname=host_interface)[0]
            # ip link set v-POD master cni0 up
            ipr.link("set", index=port, master=self._bridge_index, state="up")
            # bridge link set dev v-POD learning off flood off
            ipr.brport("set", index=port, learning=0, unicast_flood=0)
            # bridge fdb replace MAC dev v-POD master static
            ipr.fdb("replace", ifindex=port, lladdr=pod.hardware_address, state=_NUD_NOARP, flags=_NTF_MASTER)
            # ip neigh replace ADDRESS lladdr MAC dev cni0 nud permanent
            ipr.neigh(
                "replace",
                dst=pod.address,
                lladdr=pod.hardware_address,
                ifindex=self._bridge_index,
                state=_NUD_PERMANENT,
            )
        if not self._offloads:
            _switch_offloads_off(self.netns, host_interface)

    def introduce(self, pods: list[tuple[Pod, PodAddress]]) -> None:
        """Tell every pod the hardware addresses of the others and of the bridge."""
        with netlink.netlink(self.netns) as ipr:
            bridge = ipr.get_links(self._bridge_index)[0].get_attr("IFLA_ADDRESS")
        known = [(address.address, address.hardware_address) for _, address in pods]
        known.append((f"{_NETWORK}.1", bridge))
        for pod, placed in pods:
            with netlink.netlink(pod.netns) as ipr:
                for address, hardware_address in known:
                    if address != pod.address:
                        # ip neigh replace ADDRESS lladdr MAC dev eth0 nud permanent
                        ipr.neigh(
                            "replace",
                            dst=address,
                            lladdr=hardware_address,
                            ifindex=placed.interface_index,
                            state=_NUD_PERMANENT,
                        )


def _load_br_netfilter() -> None:
    with suppress(OSError):
        subprocess.run(["modprobe", "br_netfilter"], capture_output=True, check=False)
    # Loaded, it would begin to filter the machine's own bridges. The module stays (somebody
    # else may have come to need it), without that effect.
    for kind in ("iptables", "ip6tables", "arptables"):
        with suppress(OSError):
            _sysctl_file(f"{_BRIDGE_SYSCTLS}.bridge-nf-call-{kind}").write_text("0")


def one_by_one(netns: Path, interface: str) -> None:
    """Have what leaves an interface be packets of wire size. :raises OSError: the kernel refuses."""
    _switch_offloads_off(netns, interface)
    with netlink.netlink(netns) as ipr:
        # TCP builds packets of many segments whatever the device offers, and would
        # pass them whole through the pod's own egress queue.
        ipr.link("set", index=ipr.link_lookup(ifname=interface)[0], gso_max_segs=1)


def _switch_offloads_off(netns: Path, interface: str) -> None:
    # ethtool -K INTERFACE tso off gso off gro off
    with entered(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in _OFFLOADS.values():
            value = ctypes.create_string_buffer(struct.pack("II", command, 0), 8)
            request = struct.pack("16sP", interface.encode(), ctypes.addressof(value))
            fcntl.ioctl(control, _SIOCETHTOOL, request)
