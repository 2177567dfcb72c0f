"""Filters of an agent that was killed: where packet programs hang on clsact (before Linux 6.6), they stay.

What hangs on tcx ends with the process that held it. A filter of ours does not, and it may be in any network
namespace of the machine, for an attached deployment's are not ours to take down. It is told by its name; as
long as any agent runs, whose filters they are is open, and all are left alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ztprobe.kernelnet.clsact import EGRESS, INGRESS, remove_if_empty, remove_named
from ztprobe.kernelnet.netlink import NetlinkError, netlink
from ztprobe.kernelnet.rtnetlink import Links, attributes, links
from ztprobe.pods.process_table import ProcessTable
from ztprobe.probes.interfaces import PACKET_PROGRAMS

__all__ = ("sweep",)

_PROGRAM = "anon_inode:bpf-prog"
_TCA_BPF_NAME, _TCA_BPF_ID = 7, 11  # include/uapi/linux/pkt_cls.h
_NAMED = Path("/run/netns")


def sweep() -> list[str]:
    """Remove them; says what, one line each."""
    table = ProcessTable()
    table.look()
    held = {number for process in table for number in _programs_of(process.pid)}
    removed = []
    for name, netns in _namespaces(table):
        with (
            contextlib.suppress(NetlinkError, OSError),
            netlink(netns) as ipr,
            links(netns) as there,
        ):  # it may be gone by now
            for link in ipr.get_links():
                index, device = link["index"], link.get_attr("IFLA_IFNAME")
                ours = _left_on(there, index, held)
                for parent, program in ours:
                    remove_named(ipr, index, parent, program)
                    removed.append(f"probe {program} on {device} in {name} removed")
                if ours:
                    remove_if_empty(ipr, index)
    return removed


def _left_on(there: Links, index: int, held: set[int]) -> list[tuple[int, str]]:
    """(parent, name) of filters whose program nobody holds."""
    found = []
    for parent in (INGRESS, EGRESS):
        for each in there.described("filter", index, parent):
            said = attributes(each.options)
            name = said.get(_TCA_BPF_NAME, b"").rstrip(b"\0").decode(errors="replace")
            if (
                name in PACKET_PROGRAMS
                and int.from_bytes(said.get(_TCA_BPF_ID, b""), sys.byteorder) not in held
            ):
                found.append((parent, name))
    return found


def _programs_of(pid: int) -> Iterator[int]:
    """Numbers of the BPF programs that a process holds."""
    directory = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):  # it has ended
        for descriptor in (directory / "fd").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if os.readlink(descriptor) == _PROGRAM:
                    lines = (directory / "fdinfo" / descriptor.name).read_text().splitlines()
                    yield from (int(line.split()[1]) for line in lines if line.startswith("prog_id:"))


def _namespaces(table: ProcessTable) -> Iterator[tuple[str, Path]]:
    """Each network namespace once, with a name for people."""
    seen: set[int] = set()
    for process in table:
        if process.netns_inode and process.netns_inode not in seen:
            seen.add(process.netns_inode)
            yield f"the namespace of process {process.pid}", Path(f"/proc/{process.pid}/ns/net")
    with contextlib.suppress(OSError):
        for path in sorted(_NAMED.iterdir()):
            if (inode := path.stat().st_ino) not in seen:
                seen.add(inode)
                yield path.name, path
