"""Somebody else's root qdisc with everything below it: read, rehearsed, put back.

A tree is its root, classes, inner qdiscs and filters, each as the kernel has dumped it. Whether the
dump is also a complete request differs from kind to kind and from kernel to kernel, so it is not
believed but tried: before anything is taken away, the tree is set on an interface of a namespace
that nobody else can see, and read back; only if that gives the same, byte for byte, can it be put
back (`refusal`). What a dump hides needs a rule of its own: netem never shows the table of its
distribution, and a trial without it would look the same.

Counters that stand among options (packets that matched) are left out on both sides.
"""

from __future__ import annotations

import dataclasses
import struct
import threading
from pathlib import Path

from ztprobe.kernelnet import netns
from ztprobe.kernelnet.netlink import NetlinkError, netlink
from ztprobe.kernelnet.rtnetlink import (
    ROOT,
    Links,
    SavedPart,
    SavedQdisc,
    TcObject,
    attribute,
    attributes,
    handle_text,
    links,
)

__all__ = ("refusal", "restore_snapshot", "take_snapshot")

# Whose classes are made by hand; the others' (prio's bands, netem's one) come with the qdisc.
_CLASSES_BY_HAND = frozenset({"htb"})
_QDISCS = _CLASSES_BY_HAND | {
    "bfifo",
    "cake",
    "codel",
    "fq",
    "fq_codel",
    "fq_pie",
    "netem",
    "pfifo",
    "pie",
    "prio",
    "sfq",
    "tbf",
}
# What is left out of a filter's options: whether a driver has it in hardware, how often it matched.
_LEFT_OUT = {"flower": {22}, "fw": set[int](), "matchall": {3, 4}, "u32": {9, 11}}
_ACTIONS = {"flower": {3}, "fw": {2, 4}, "matchall": {2}, "u32": {6, 7}}
_KNOWN = {"qdisc": _QDISCS, "class": _CLASSES_BY_HAND, "filter": frozenset(_LEFT_OUT)}
_TIMES = {"codel": {1, 3, 5}, "fq_codel": {1, 3, 7}}  # target, interval, ce_threshold
_U32_DIVISOR = 4
_TCA_STAB, _TCA_INGRESS_BLOCK, _TCA_EGRESS_BLOCK = 8, 13, 14
_HTB_INIT, _HTB_GLOBAL = 2, struct.Struct("=5I")
_NETEM_BYTES, _NETEM_JITTER, _NETEM_JITTER64, _NETEM_SLOT = 24, 20, 11, 12
_SLOT_DISTRIBUTION = slice(24, 32)
_TRIAL = "ztp-trial"


def take_snapshot(there: Links, index: int) -> SavedQdisc | None:
    """The root qdisc that somebody has set on a link, with what is below it; None: nobody has.

    :raises OSError: it has something that this module cannot describe; says what.
    """
    qdiscs = [q for q in there.described("qdisc", index) if q.handle and q.parent != 0xFFFF_FFF1]
    root = next((q for q in qdiscs if q.parent == ROOT), None)
    if root is None:
        return None
    for qdisc in qdiscs:
        if qdisc.attributes.keys() & {_TCA_STAB, _TCA_INGRESS_BLOCK, _TCA_EGRESS_BLOCK}:
            raise OSError(
                f"its {qdisc.kind} {handle_text(qdisc.handle)} has a size table or a shared filter block"
            )
    classes = [c for c in there.described("class", index) if c.kind in _CLASSES_BY_HAND and c.handle & 0xFFFF]
    parts = [_part("qdisc", q, _qdisc_options(q)) for q in qdiscs if q is not root]
    parts += [_part("class", c, c.options) for c in classes]
    for owner in (*qdiscs, *classes):
        parts += _filters(there, index, owner.handle)
    whole = SavedQdisc(kind=root.kind, handle=root.handle, options_hex=_qdisc_options(root).hex())
    return dataclasses.replace(whole, parts=tuple(_in_order(whole, parts)))


def refusal(saved: SavedQdisc, mtu_bytes: int) -> str | None:
    """Why a tree could not be put back as it was, found out by doing it elsewhere; None: it can be.

    :param mtu_bytes: of the interface that it stands on.
    """
    everything = [("qdisc", saved.kind, saved.options_hex)]
    everything += [(part.what, part.kind, part.options_hex) for part in saved.parts]
    for what, kind, options_hex in everything:
        options = bytes.fromhex(options_hex)
        if kind not in _KNOWN[what]:
            return f"it has a {what} of kind {kind}"
        if what == "qdisc" and kind == "netem" and _has_hidden_table(options):
            return "its netem has jitter, and the kernel never shows by which distribution table"
        if what == "filter" and _ACTIONS[kind] & attributes(options).keys():
            return f"a {kind} filter of it has actions, which count and cannot be set again alike"
    return _rehearsed(saved, mtu_bytes)


def restore_snapshot(there: Links, index: int, saved: SavedQdisc) -> str | None:
    """Set a tree in place of a link's root; says what is different from what was saved, or None.

    :raises OSError: the kernel refuses.
    """
    there.put(index, dataclasses.replace(saved, options_hex=_request(saved)))
    for part in saved.parts:
        there.add(index, dataclasses.replace(part, options_hex=_request(part)))
    found = take_snapshot(there, index)
    if found is None:
        return "the kernel shows no qdisc"
    if dataclasses.replace(found, parts=()) != dataclasses.replace(saved, parts=()):
        return f"the kernel shows {found.kind} {handle_text(found.handle)} with other values"
    if missing := set(saved.parts) ^ set(found.parts):
        first = min(missing, key=lambda part: (part.what, part.handle))
        return f"the kernel shows {first.what} {first.kind} {handle_text(first.handle)} with other values"
    return None


def _rehearsed(saved: SavedQdisc, mtu_bytes: int) -> str | None:
    result: list[str | None] = []

    def attempt() -> None:
        try:
            netns.unshare(netns.CLONE_NEWNET)
            with netlink() as ipr:
                # ip link add ztp-trial mtu M type veth
                ipr.link("add", ifname=_TRIAL, kind="veth", peer={"ifname": f"{_TRIAL}1"})
                (index,) = ipr.link_lookup(ifname=_TRIAL)
                ipr.link("set", index=index, mtu=mtu_bytes)
            with links(Path(f"/proc/self/task/{threading.get_native_id()}/ns/net")) as there:
                result.append(restore_snapshot(there, there.index(_TRIAL), saved))
        except (OSError, NetlinkError) as error:
            result.append(error.strerror if isinstance(error, OSError) and error.strerror else str(error))

    # The namespace ends with its thread.
    thread = threading.Thread(target=attempt, name="qdisc-trial")
    thread.start()
    thread.join()
    problem = result[0] if result else "it broke off"
    return None if problem is None else f"a trial elsewhere did not give the same: {problem}"


def _part(what: str, found: TcObject, options: bytes) -> SavedPart:
    return SavedPart(
        what=what,
        kind=found.kind,
        handle=found.handle,
        parent=found.parent,
        info=found.info if what == "filter" else 0,
        chain=found.chain,
        options_hex=options.hex(),
    )


def _qdisc_options(qdisc: TcObject) -> bytes:
    if qdisc.kind != "htb":
        return qdisc.options
    options = b""
    for number, payload in attributes(qdisc.options).items():
        if number == _HTB_INIT:
            # struct tc_htb_glob: dumped with the whole version and a counter, set with the major
            # version alone (net/sched/sch_htb.c, htb_init)
            version, rate2quantum, default_class, debug, _ = _HTB_GLOBAL.unpack(payload)
            payload = _HTB_GLOBAL.pack(version >> 16, rate2quantum, default_class, debug, 0)
        options += attribute(number, payload)
    return options


def _request(described: SavedQdisc | SavedPart) -> str:
    """What makes the kernel show that description, in hexadecimal."""
    if described.kind not in _TIMES:
        return described.options_hex
    options = b""
    for number, payload in attributes(bytes.fromhex(described.options_hex)).items():
        if number in _TIMES[described.kind]:
            # Microseconds, kept in units of 1024 ns and rounded down on both ways: 5000 is shown as
            # 4999, and 4999 would be shown as 4998.
            payload = struct.pack("=I", struct.unpack("=I", payload)[0] + 1)
        options += attribute(number, payload)
    return options.hex()


def _filters(there: Links, index: int, parent: int) -> list[SavedPart]:
    found = []
    for one in there.described("filter", index, parent):
        if one.parent != parent or not one.options:
            continue  # a priority, not a filter
        if one.kind == "u32" and _is_own_table(one):
            continue
        found.append(_part("filter", one, _without(one.options, _LEFT_OUT.get(one.kind, set()))))
    # The kernel numbers u32's tables as priorities come.
    return sorted(found, key=lambda part: part.handle >> 20 if part.kind == "u32" else 0)


def _is_own_table(one: TcObject) -> bool:
    # Every priority has one, of a single bucket, with a number of the kernel's choice.
    values = attributes(one.options)
    return values.keys() == {_U32_DIVISOR} and one.handle >= 0x8000_0000 and values[_U32_DIVISOR][0] == 1


def _without(data: bytes, numbers: set[int]) -> bytes:
    kept = b""
    while len(data) >= 4:
        length, number = struct.unpack_from("=HH", data)
        if length < 4:
            break
        piece, data = data[: (length + 3) & ~3], data[(length + 3) & ~3 :]
        if number & 0x3FFF not in numbers:
            kept += piece + bytes(-len(piece) % 4)
    return kept


def _has_hidden_table(options: bytes) -> bool:
    (jitter,) = struct.unpack_from("=I", options, _NETEM_JITTER)
    more = attributes(options[_NETEM_BYTES:])
    slot = more.get(_NETEM_SLOT, b"")
    return bool(jitter or any(more.get(_NETEM_JITTER64, b"")) or any(slot[_SLOT_DISTRIBUTION]))


def _in_order(root: SavedQdisc, parts: list[SavedPart]) -> list[SavedPart]:
    """Parents first, filters last."""
    qdiscs = {root.handle: root.kind} | {p.handle: p.kind for p in parts if p.what == "qdisc"}
    there, ordered = {root.handle}, []
    left = [part for part in parts if part.what != "filter"]
    while left:
        ready = [part for part in left if _has_parent(part, qdiscs, there)]
        if not ready:
            raise OSError(
                f"its {left[0].what} {handle_text(left[0].handle)} belongs to nothing that is shown"
            )
        ordered += ready
        there |= {part.handle for part in ready}
        left = [part for part in left if part not in ready]
    return ordered + [part for part in parts if part.what == "filter"]


def _has_parent(part: SavedPart, qdiscs: dict[int, str], there: set[int]) -> bool:
    major = (part.handle if part.parent == ROOT else part.parent) & 0xFFFF_0000
    if major not in there:
        return False
    by_hand = qdiscs.get(major) in _CLASSES_BY_HAND
    return part.parent in (ROOT, major) or not by_hand or part.parent in there
