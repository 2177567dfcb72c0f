"""Plain rtnetlink for what pyroute2 0.9.7 does not give: options byte for byte, whole u32 keys, speed.

A qdisc is described as the kernel does, and set from that description: somebody else's root, to
be put back as it was, or our own of one pod, to be set on many more (0.1 ms a pod instead of
2). Only kinds whose dump is also a complete request can be put back: a classful qdisc's
classes and filters are not in it, and netem does not say which distribution it has.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from ztprobe.leases import SavedQdisc
from ztprobe.netns import entered

__all__ = ("DELAY_DISTRIBUTION", "ROOT", "Links", "can_put_back", "links")

ROOT = 0xFFFF_FFFF
DELAY_DISTRIBUTION = 2  # TCA_NETEM_DELAY_DIST, the one option that a dump lacks

_RTM_NEWQDISC, _RTM_GETQDISC, _RTM_GETTFILTER = 36, 38, 46
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP, _NLM_F_CREATE, _NLM_F_REPLACE = 1, 4, 0x300, 0x400, 0x100
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_U32_SEL = 5
_U32_SEL_BYTES, _U32_KEY = 16, struct.Struct("=4s4sii")
_HEADER = struct.Struct("=IHHII")
_TCMSG = struct.Struct("=BxxxiIII")
_WHOLE = frozenset({"bfifo", "codel", "fq", "fq_codel", "pfifo", "sfq", "tbf"})


def can_put_back(saved: SavedQdisc) -> bool:
    """Whether setting it from its description gives the same again."""
    return saved.kind in _WHOLE


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
        """(parent, qdisc) of everything that somebody has set on a link, the root first."""
        found = []
        for link, handle, parent, attributes in self._dump(_RTM_GETQDISC, index, 0):
            if link == index and handle:
                kind = attributes[_TCA_KIND].rstrip(b"\0").decode()
                options_hex = attributes.get(_TCA_OPTIONS, b"").hex()
                found.append((parent, SavedQdisc(kind=kind, handle=handle, options_hex=options_hex)))
        return sorted(found, key=lambda item: item[0] != ROOT)

    def root(self, index: int) -> SavedQdisc | None:
        """The root qdisc that somebody has set; None: only the kernel's default."""
        return next((saved for parent, saved in self.qdiscs(index) if parent == ROOT), None)

    def u32_matches(self, index: int, parent: int) -> list[tuple[int, bytes, bytes]]:
        """(offset in the packet, mask, value) of every key of the u32 filters below ``parent``."""
        keys = []
        for _, _, _, attributes in self._dump(_RTM_GETTFILTER, index, parent):
            selector = _attributes(attributes.get(_TCA_OPTIONS, b"")).get(_TCA_U32_SEL, b"")
            for key in range(selector[2] if selector else 0):
                start = _U32_SEL_BYTES + key * _U32_KEY.size
                mask, value, offset, _ = _U32_KEY.unpack_from(selector, start)
                keys.append((offset, mask, value))
        return keys

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
            options += _attribute(*more)
        body = _TCMSG.pack(0, index, saved.handle, parent, 0)
        body += _attribute(_TCA_KIND, saved.kind.encode() + b"\0")
        if options:
            body += _attribute(_TCA_OPTIONS, options)
        flags = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_REPLACE
        self._route.send(_HEADER.pack(16 + len(body), _RTM_NEWQDISC, flags, 1, 0) + body)
        (error,) = struct.unpack_from("=i", self._route.recv(1 << 16), 16)
        if error:
            raise OSError(-error, f"the kernel refused {saved.kind}")

    def _dump(self, kind: int, index: int, parent: int) -> list[tuple[int, int, int, dict[int, bytes]]]:
        # (interface, handle, parent, attributes) of every object
        found: list[tuple[int, int, int, dict[int, bytes]]] = []
        body = _TCMSG.pack(0, index, 0, parent, 0)
        self._route.send(_HEADER.pack(16 + len(body), kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + body)
        while True:
            data = self._route.recv(1 << 17)
            while data:
                length, answer, _, _, _ = _HEADER.unpack_from(data)
                message, data = data[16:length], data[(length + 3) & ~3 :]
                if answer in (_NLMSG_DONE, _NLMSG_ERROR):
                    return found
                _, link, handle, above, _ = _TCMSG.unpack_from(message)
                found.append((link, handle, above, _attributes(message[_TCMSG.size :])))


@contextlib.contextmanager
def links(netns: Path) -> Iterator[Links]:
    """The links of a namespace. :raises OSError: it cannot be entered."""
    with entered(netns):
        route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        indices = {name: index for index, name in socket.if_nameindex()}
    with route:
        route.bind((0, 0))
        yield Links(route, indices)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)
