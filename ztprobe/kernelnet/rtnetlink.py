"""Plain rtnetlink for what pyroute2 0.9.7 does not give: options byte for byte, whole u32 keys, speed.

A qdisc is described as the kernel does, and set from that description: somebody else's root, to
be put back as it was (``ztprobe.leases.qdisc_snapshot``), or our own of one pod, to be set on many
more (0.1 ms a pod instead of 2).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ztprobe.kernelnet.netns import entered

__all__ = (
    "DELAY_DISTRIBUTION",
    "ROOT",
    "Links",
    "SavedPart",
    "SavedQdisc",
    "TcObject",
    "attribute",
    "attributes",
    "handle_text",
    "links",
    "u32_keys",
)

ROOT = 0xFFFF_FFFF
DELAY_DISTRIBUTION = 2  # TCA_NETEM_DELAY_DIST, the one option that a dump lacks

_RTM_NEW = {"qdisc": 36, "class": 40, "filter": 44}
_RTM_DEL_FILTER = 45
_RTM_GET = {"qdisc": 38, "class": 42, "filter": 46}
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_NLM_F_CREATE, _NLM_F_REPLACE, _NLM_F_EXCL = 0x400, 0x100, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCA_KIND, _TCA_OPTIONS, _TCA_CHAIN = 1, 2, 11
_CLSACT = 0xFFFF_FFF1
_TCA_U32_SEL = 5
_U32_SEL_BYTES, _U32_KEY = 16, struct.Struct("=4s4sii")
_HEADER = struct.Struct("=IHHII")
_TCMSG = struct.Struct("=BxxxiIII")


@dataclass(frozen=True, kw_only=True)
class SavedPart:
    """A class, filter or qdisc below somebody else's root qdisc, as the kernel described it."""

    what: str  # qdisc | class | filter
    kind: str
    handle: int
    parent: int
    info: int  # a filter's priority and protocol
    chain: int
    options_hex: str


@dataclass(frozen=True, kw_only=True)
class SavedQdisc:
    """Somebody else's root qdisc, as the kernel described it, to be put back."""

    kind: str
    handle: int
    options_hex: str  # TCA_OPTIONS as dumped
    parts: tuple[SavedPart, ...] = ()  # in the order in which they can be set


@dataclass(frozen=True, kw_only=True)
class TcObject:
    """A qdisc, class or filter as the kernel has dumped it."""

    handle: int
    parent: int
    info: int
    attributes: dict[int, bytes]

    @property
    def kind(self) -> str:
        """E.g. htb."""
        return self.attributes[_TCA_KIND].rstrip(b"\0").decode()

    @property
    def options(self) -> bytes:
        """TCA_OPTIONS."""
        return self.attributes.get(_TCA_OPTIONS, b"")

    @property
    def chain(self) -> int:
        """A filter's chain."""
        return int.from_bytes(self.attributes.get(_TCA_CHAIN, b""), "little")


class Links:
    """The links of one network namespace, through one socket."""

    def __init__(self, route: socket.socket, indices: dict[str, int]) -> None:
        self._route = route
        self._indices = indices

    def index(self, interface: str) -> int:
        """The link's number. :raises OSError: there is none of that name."""
        if interface not in self._indices:
            raise OSError(f"there is no interface {interface}")
        return self._indices[interface]

    def qdiscs(self, index: int) -> list[tuple[int, SavedQdisc]]:
        """(parent, qdisc) of everything that somebody has set on a link's egress, the root first."""
        found = [
            (qdisc.parent, SavedQdisc(kind=qdisc.kind, handle=qdisc.handle, options_hex=qdisc.options.hex()))
            for qdisc in self.described("qdisc", index)
            if qdisc.handle and qdisc.parent != _CLSACT
        ]
        return sorted(found, key=lambda item: item[0] != ROOT)

    def root(self, index: int) -> SavedQdisc | None:
        """The root qdisc that somebody has set; None: only the kernel's default."""
        return next((saved for parent, saved in self.qdiscs(index) if parent == ROOT), None)

    def u32_matches(self, index: int, parent: int) -> list[tuple[int, bytes, bytes]]:
        """(offset in the packet, mask, value) of every key of the u32 filters below ``parent``."""
        return [key for found in self.described("filter", index, parent) for key in u32_keys(found)]

    def remove_filter(self, index: int, there: TcObject) -> None:
        """Take a filter away, as it was described. :raises OSError: the kernel refuses."""
        # tc filter del dev eth0 parent PARENT protocol PROTOCOL prio PRIORITY handle HANDLE KIND
        body = _TCMSG.pack(0, index, there.handle, there.parent, there.info)
        body += attribute(_TCA_KIND, there.kind.encode() + b"\0")
        self._request(_RTM_DEL_FILTER, body, 0, f"to remove filter {there.kind} {handle_text(there.handle)}")

    def put(
        self,
        index: int,
        saved: SavedQdisc,
        *,
        parent: int = ROOT,
        more: tuple[int, bytes] | None = None,
    ) -> None:
        """Set a qdisc from its description, in place of what stands there.

        :param more: an option that the description lacks.
        :raises OSError: the kernel refuses.
        """
        options = bytes.fromhex(saved.options_hex)
        if more is not None:
            options += attribute(*more)
        self._set(index, _qdisc(saved, parent), options, _NLM_F_CREATE | _NLM_F_REPLACE)

    def change(self, index: int, parent: int, there: SavedQdisc, options: bytes) -> None:
        """Give a qdisc other options where it stands; what it holds stays in it.

        :raises OSError: it is not there any more (ENOENT), or the kernel refuses.
        """
        # tc qdisc change dev eth0 parent PARENT handle HANDLE KIND ...
        self._set(index, _qdisc(there, parent), options)

    def add(self, index: int, part: SavedPart) -> None:
        """Set a class, filter or inner qdisc from its description.

        :raises OSError: the kernel refuses.
        """
        flags = _NLM_F_CREATE | (_NLM_F_REPLACE if part.what == "qdisc" else _NLM_F_EXCL)
        self._set(index, part, bytes.fromhex(part.options_hex), flags)

    def _set(self, index: int, part: SavedPart, options: bytes, flags: int = 0) -> None:
        body = _TCMSG.pack(0, index, part.handle, part.parent, part.info)
        body += attribute(_TCA_KIND, part.kind.encode() + b"\0")
        if part.chain:
            body += attribute(_TCA_CHAIN, struct.pack("=I", part.chain))
        if options:
            body += attribute(_TCA_OPTIONS, options)
        what = f"{part.what} {part.kind} {handle_text(part.handle)}"
        self._request(_RTM_NEW[part.what], body, flags, what)

    def _request(self, kind: int, body: bytes, flags: int, what: str) -> None:
        flags |= _NLM_F_REQUEST | _NLM_F_ACK
        self._route.send(_HEADER.pack(16 + len(body), kind, flags, 1, 0) + body)
        (error,) = struct.unpack_from("=i", self._route.recv(1 << 16), 16)
        if error:
            raise OSError(-error, f"the kernel refused {what} ({os.strerror(-error)})")

    def described(self, what: str, index: int, parent: int = 0) -> list[TcObject]:
        """Every qdisc, class or filter of a link; filters are those below ``parent``."""
        found: list[TcObject] = []
        body = _TCMSG.pack(0, index, 0, parent, 0)
        header = _HEADER.pack(16 + len(body), _RTM_GET[what], _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
        self._route.send(header + body)
        while True:
            data = self._route.recv(1 << 17)
            while data:
                length, answer, _, _, _ = _HEADER.unpack_from(data)
                message, data = data[16:length], data[(length + 3) & ~3 :]
                if answer in (_NLMSG_DONE, _NLMSG_ERROR):
                    return found
                _, link, handle, above, info = _TCMSG.unpack_from(message)
                if link == index:
                    values = attributes(message[_TCMSG.size :])
                    found.append(TcObject(handle=handle, parent=above, info=info, attributes=values))


def _qdisc(saved: SavedQdisc, parent: int) -> SavedPart:
    return SavedPart(
        what="qdisc",
        kind=saved.kind,
        handle=saved.handle,
        parent=parent,
        info=0,
        chain=0,
        options_hex=saved.options_hex,
    )


@contextlib.contextmanager
def links(netns: Path) -> Iterator[Links]:
    """The links of a namespace. :raises OSError: it cannot be entered."""
    with entered(netns):
        route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        indices = {name: index for index, name in socket.if_nameindex()}
    with route:
        route.bind((0, 0))
        yield Links(route, indices)


def u32_keys(found: TcObject) -> list[tuple[int, bytes, bytes]]:
    """(offset in the packet, mask, value) of every key of a u32 filter; of anything else: none."""
    selector = attributes(found.options).get(_TCA_U32_SEL, b"") if found.kind == "u32" else b""
    keys = []
    for key in range(selector[2] if selector else 0):
        start = _U32_SEL_BYTES + key * _U32_KEY.size
        mask, value, offset, _ = _U32_KEY.unpack_from(selector, start)
        keys.append((offset, mask, value))
    return keys


def attributes(data: bytes) -> dict[int, bytes]:
    """Netlink attributes, number to payload."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def attribute(kind: int, payload: bytes) -> bytes:
    """One netlink attribute."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def handle_text(handle: int) -> str:
    """A handle as tc writes it: 7:, 7:10."""
    minor = handle & 0xFFFF
    return f"{handle >> 16:x}:{minor:x}" if minor else f"{handle >> 16:x}:"
