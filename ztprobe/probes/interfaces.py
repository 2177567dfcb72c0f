"""Where the packet programs hang on a pod's interfaces: tcx, or clsact where the kernel has no tcx.

Either way they see the same packets, before any other filter. Through clsact a packet goes by way of
the classifiers' own machinery, which costs more than what most runs of our programs do (`make bench`).
tcx (Linux 6.6) calls a program at once, and its links end with the process that holds them.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ztprobe.errors import PreflightError
from ztprobe.kernelnet.clsact import (
    EGRESS,
    INGRESS,
    add_clsact,
    has_named,
    remove_if_empty,
    remove_named,
)
from ztprobe.kernelnet.netlink import NetlinkError, netlink
from ztprobe.kernelnet.netns import entered, inode
from ztprobe.preflight.bpf import TCX_EGRESS, TCX_INGRESS

__all__ = ("PACKET_PROGRAMS", "Clsact", "PacketHooks", "Tcx")

# program -> where it hangs; "eth0" stands for a pod's interface, whatever its name
PACKET_PROGRAMS = {"tc_eth_out": "eth0 egress", "tc_eth_in": "eth0 ingress", "tc_lo_out": "lo egress"}

_INTERFACES = 3072  # maps.h has the same
_LINK_INFO = struct.Struct("=IIIxxxxI")  # struct bpf_link_info: type, id, prog_id, tcx.ifindex
_LINK_INFO_BYTES = 128


class PacketHooks(Protocol):
    """The programs on the interfaces of pods."""

    name: str  # as the doctor calls it

    def attach(self, netns: Path, interfaces: Sequence[str], fds: Mapping[str, int]) -> None:
        """Put them on a pod's interfaces and its loopback.

        :param fds: program -> file descriptor.
        :raises PreflightError: the kernel refuses, they are there already, or these are more pods than fit.
        """

    def detach_from(self, netns: Path) -> None:
        """Take them away from one pod; nothing if it is gone."""

    def stop(self) -> None:
        """They shall see nothing any more."""

    def missing(self) -> Iterator[tuple[Path, str, str]]:
        """(namespace, device, program) of those that somebody else has taken away, if that can be asked."""

    def detach(self) -> None:
        """Take them away. Idempotent."""


def _devices(interfaces: Sequence[str]) -> Iterator[tuple[str, str]]:
    for program, place in PACKET_PROGRAMS.items():
        for device in ("lo",) if place.startswith("lo") else interfaces:
            yield program, device


def _where(netns: Path, interfaces: Sequence[str]) -> str:
    return f"{' and '.join(interfaces) or 'lo'} in {netns.name}"


class Tcx:
    """By BPF links.

    :param libbpf: libbpf.so.1, opened with ``use_errno``.
    """

    name = "tcx"

    def __init__(self, libbpf: Any) -> None:
        self._libbpf = libbpf
        self._links: dict[tuple[Path, str, str], int] = {}

    def attach(self, netns: Path, interfaces: Sequence[str], fds: Mapping[str, int]) -> None:
        """See `PacketHooks`."""
        try:
            with netlink(netns) as ipr:
                indexes = {device: ipr.link_lookup(ifname=device)[0] for device in (*interfaces, "lo")}
            for program, device in _devices(interfaces):
                place = (netns, device, program)
                if place in self._links:
                    raise ValueError("it is being watched already")
                kind = TCX_EGRESS if program.endswith("_out") else TCX_INGRESS
                with entered(netns):
                    link = self._libbpf.bpf_link_create(fds[program], indexes[device], kind, None)
                if link < 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                self._links[place] = link
        except (NetlinkError, OSError, LookupError, ValueError) as error:
            raise PreflightError(f"cannot attach to {_where(netns, interfaces)}: {error}") from error

    def detach_from(self, netns: Path) -> None:
        """See `PacketHooks`."""
        for place in [place for place in self._links if place[0] == netns]:
            os.close(self._links.pop(place))

    def stop(self) -> None:
        """See `PacketHooks`."""
        self.detach()

    def missing(self) -> Iterator[tuple[Path, str, str]]:
        """See `PacketHooks`."""
        info = ctypes.create_string_buffer(_LINK_INFO_BYTES)
        for place, link in self._links.items():
            length = ctypes.c_uint32(_LINK_INFO_BYTES)
            if self._libbpf.bpf_obj_get_info_by_fd(link, info, ctypes.byref(length)) == 0:
                *_, ifindex = _LINK_INFO.unpack_from(info)
                if not ifindex:  # detached, or the device is gone
                    yield place

    def detach(self) -> None:
        """See `PacketHooks`."""
        for link in self._links.values():
            os.close(link)
        self._links.clear()


class Clsact:
    """By filters, each with a number that tells the program whose packets it sees.

    :param interfaces: the map of these numbers.
    """

    name = "tc clsact"

    def __init__(self, interfaces: Any) -> None:
        self._table = interfaces
        self._numbers: dict[int, int] = {}  # namespace inode -> the number that its filters carry
        self._places: list[tuple[Path, int, bool]] = []  # the last: the clsact was not there before

    def attach(self, netns: Path, interfaces: Sequence[str], fds: Mapping[str, int]) -> None:
        """See `PacketHooks`."""
        taken = set(self._numbers.values())
        number = self._numbers.get(inode(netns)) or next(n for n in itertools.count(1) if n not in taken)
        if number >= _INTERFACES:
            raise PreflightError(f"cannot watch {netns.name}: no more than {_INTERFACES - 1} pods at once")
        self._numbers[inode(netns)] = number
        self._table[self._table.Key(number)] = self._table.Leaf(inode(netns))
        try:
            with netlink(netns) as ipr:
                made: dict[int, bool] = {}
                for program, device in _devices(interfaces):
                    (index,) = ipr.link_lookup(ifname=device)
                    if index not in made:
                        made[index] = add_clsact(ipr, index)
                        self._places.append((netns, index, made[index]))
                    if has_named(ipr, index, _parent(program), program):
                        raise ValueError("it is being watched already")
                    # tc filter add dev IFACE egress bpf direct-action fd N
                    ipr.tc(
                        "add-filter",
                        "bpf",
                        index=index,
                        parent=_parent(program),
                        fd=fds[program],
                        name=program,
                        direct_action=True,
                        classid=number,
                        prio=1,
                    )
        except (NetlinkError, ValueError) as error:
            raise PreflightError(f"cannot attach to {_where(netns, interfaces)}: {error}") from error

    def detach_from(self, netns: Path) -> None:
        """See `PacketHooks`."""
        mine = [place for place in self._places if place[0] == netns]
        self._places = [place for place in self._places if place[0] != netns]
        _take_away(mine)

    def stop(self) -> None:
        """See `PacketHooks`."""
        for number in self._numbers.values():
            self._table[self._table.Key(number)] = self._table.Leaf(0)

    def missing(self) -> Iterator[tuple[Path, str, str]]:
        """See `PacketHooks`: of filters the kernel tells (``ztprobe.kernelnet.monitor``)."""
        yield from ()

    def detach(self) -> None:
        """See `PacketHooks`."""
        _take_away(self._places)
        self._places.clear()


def _take_away(places: Iterable[tuple[Path, int, bool]]) -> None:
    for netns, index, made in places:
        try:
            with netlink(netns) as ipr:
                for program in PACKET_PROGRAMS:
                    remove_named(ipr, index, _parent(program), program)
                if made:
                    remove_if_empty(ipr, index)
        except (NetlinkError, OSError):
            continue  # the pod is gone, and its qdiscs with it


def _parent(program: str) -> int:
    return INGRESS if program.endswith("_in") else EGRESS
