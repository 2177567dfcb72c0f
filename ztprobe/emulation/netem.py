"""netem on a pod's interface: the kernel's own delay, jitter, loss and rate.

pyroute2 0.9.7 encodes neither a delay distribution nor 64-bit times, and drops an unknown
keyword silently, so this module hands it a plug-in of its own for ``netem`` (the registry
that ``IPRoute.tc("modules")`` returns) and computes every field itself, from
include/uapi/linux/pkt_sched.h. The normal table is that of iproute2's netem/normal.c,
computed, not copied (``ztprobe.profile.distributions``), and so are the others. Loss in bursts and
correlated loss are the kernel's Gilbert-Elliott model.

netem's loss and delay meet ARP too: resolve neighbours first.

Changed in place, netem keeps what it holds, each packet with its own time. What a change does
not mention stays as it was (sch_netem.c, netem_change: rate, corruption, the table), so a
change mentions all of it; a table cannot be taken away, so uniform jitter then has one too.
"""

from __future__ import annotations

import functools
import struct
import threading
from types import SimpleNamespace
from typing import Any

from ztprobe.errors import EnforcementError
from ztprobe.kernelnet import netns
from ztprobe.kernelnet.netlink import IPRoute, NetlinkError, netlink
from ztprobe.kernelnet.root_qdisc import HANDLE, LinkSpot
from ztprobe.kernelnet.rtnetlink import attribute, attributes
from ztprobe.profile.model import Profile

__all__ = (
    "netem_change_options",
    "netem_options",
    "netem_summary",
    "netem_supported",
    "set_netem",
)

_LOOPBACK = 1
_LOSS_GE = 2  # NETEM_LOSS_GE
_UINT32 = 2**32 - 1
_TICK_SHIFT = 6  # PSCHED_SHIFT: a scheduler tick is 64 ns

_ATTRIBUTES = (
    ("TCA_NETEM_UNSPEC", "none"),
    ("TCA_NETEM_CORR", "none"),
    ("TCA_NETEM_DELAY_DIST", "cdata"),
    ("TCA_NETEM_REORDER", "cdata"),
    ("TCA_NETEM_CORRUPT", "cdata"),
    ("TCA_NETEM_LOSS", "cdata"),
    ("TCA_NETEM_RATE", "netem_rate"),
    ("TCA_NETEM_ECN", "none"),
    ("TCA_NETEM_RATE64", "uint64"),
    ("TCA_NETEM_PAD", "none"),
    ("TCA_NETEM_LATENCY64", "uint64"),
    ("TCA_NETEM_JITTER64", "uint64"),
)
_NUMBERS = {name: number for number, (name, _) in enumerate(_ATTRIBUTES)}
_QOPT_FIELDS = ("delay", "limit", "loss", "gap", "duplicate", "jitter")
_QOPT = struct.Struct("=6I")  # struct tc_netem_qopt
_RATE = struct.Struct("=IiIi")  # struct tc_netem_rate


def _packed(samples: tuple[int, ...]) -> bytes:
    return struct.pack(f"={len(samples)}h", *samples)


def netem_options(profile: Profile) -> dict[str, Any]:
    """``struct tc_netem_qopt`` and its attributes for a profile."""
    delay_ns, jitter_ns = round(profile.delay_ms * 1e6), round(profile.jitter_ms * 1e6)
    attrs: list[tuple[str, Any]] = [("TCA_NETEM_LATENCY64", delay_ns), ("TCA_NETEM_JITTER64", jitter_ns)]
    if profile.distribution not in ("none", "uniform"):  # uniform is what netem does without a table
        attrs.append(("TCA_NETEM_DELAY_DIST", _packed(profile.delay_samples)))
    if profile.reorder_pct:
        attrs.append(("TCA_NETEM_REORDER", struct.pack("=II", _share(profile.reorder_pct), 0)))
    if profile.corrupt_pct:
        attrs.append(("TCA_NETEM_CORRUPT", struct.pack("=II", _share(profile.corrupt_pct), 0)))
    states = profile.loss_states
    if states is not None:
        # struct tc_netem_gemodel: p, r, h (delivered in the bad state), k1 (lost in the good state)
        shares = (
            states.good_to_bad_pct,
            states.bad_to_good_pct,
            100 - states.loss_in_bad_pct,
            states.loss_in_good_pct,
        )
        model = struct.pack("=HH4I", 20, _LOSS_GE, *map(_share, shares))
        attrs.append(("TCA_NETEM_LOSS", model))
    if profile.rate_mbit is not None:
        rate_bytes_per_s = round(profile.rate_mbit * 1e6 / 8)
        rate = {"rate": rate_bytes_per_s, "packet_overhead": 0, "cell_size": 0, "cell_overhead": 0}
        attrs.append(("TCA_NETEM_RATE", rate))
    return {
        # The old 32-bit fields, for a kernel without the 64-bit ones (before 4.15).
        "delay": min(delay_ns >> _TICK_SHIFT, _UINT32),
        "limit": profile.queue_limit_packets,
        "loss": _share(profile.loss_pct) if states is None else 0,
        "gap": 1 if profile.reorder_pct else 0,
        "duplicate": _share(profile.duplicate_pct),
        "jitter": min(jitter_ns >> _TICK_SHIFT, _UINT32),
        "attrs": attrs,
    }


def netem_change_options(profile: Profile) -> bytes:
    """TCA_OPTIONS that make any netem do this profile."""
    options = netem_options(profile)
    nothing = {"rate": 0, "packet_overhead": 0, "cell_size": 0, "cell_overhead": 0}
    mentioned = {
        "TCA_NETEM_REORDER": bytes(8),
        "TCA_NETEM_CORRUPT": bytes(8),
        "TCA_NETEM_RATE": nothing,
        **dict(options["attrs"]),
    }
    if profile.distribution == "uniform":
        mentioned["TCA_NETEM_DELAY_DIST"] = _packed(profile.delay_samples)
    encoded = _QOPT.pack(*(options[name] for name in _QOPT_FIELDS))
    for name, value in mentioned.items():
        if name == "TCA_NETEM_RATE":
            value = _RATE.pack(*(value[key] for key in nothing))
        elif isinstance(value, int):
            value = value.to_bytes(8, "little")
        encoded += attribute(_NUMBERS[name], value)
    return encoded


def netem_summary(options: bytes) -> dict[str, Any]:
    """What TCA_OPTIONS say, as sent or as the kernel describes them (which leaves out the table)."""
    found: list[tuple[str, Any]] = []
    for number, value in dict(attributes(options[_QOPT.size :])).items():
        name = _ATTRIBUTES[number][0] if number < len(_ATTRIBUTES) else ""
        if name == "TCA_NETEM_RATE":
            found.append((name, {"rate": _RATE.unpack(value)[0]}))
        elif name.endswith("64"):
            found.append((name, int.from_bytes(value, "little")))
        else:
            found.append((name, value))
    fields = dict(zip(_QOPT_FIELDS, _QOPT.unpack_from(options), strict=True))
    return _summary({**fields, "attrs": found})


def _share(pct: float) -> int:
    return round(pct / 100 * _UINT32)


def set_netem(spot: LinkSpot, profile: Profile) -> None:
    """Put netem at a spot and read it back.

    :raises EnforcementError: the kernel holds other values than were set.
    """
    _install_plugin(spot.ipr)
    options = netem_options(profile)
    # tc qdisc add dev eth0 root handle 5a70: netem limit N delay D J distribution normal loss P rate R
    spot.ipr.tc("add", "netem", spot.index, spot.handle, parent=spot.parent, netem_options=options)
    found = spot.found()
    wanted = _summary(options)
    got = _summary(found.options) if found is not None and found.kind == "netem" else None
    # The kernel never says which table it has; only the measured spread tells.
    if got != wanted:
        raise EnforcementError(f"{spot.pod}: netem was set to {wanted} and read back as {got}")


@functools.cache
def netem_supported() -> bool:
    """Whether this kernel has sch_netem: tried on a namespace that nobody else can see (needs root)."""
    result: list[bool] = []

    def attempt() -> None:
        netns.unshare(netns.CLONE_NEWNET)
        with netlink() as ipr:
            _install_plugin(ipr)
            try:
                ipr.tc("add", "netem", _LOOPBACK, HANDLE, netem_options=netem_options(Profile(name="trial")))
                result.append(True)
            except NetlinkError:
                result.append(False)

    # The namespace ends with its thread.
    thread = threading.Thread(target=attempt, name="netem-trial")
    thread.start()
    thread.join()
    return bool(result and result[0])


def _plain(value: Any) -> bytes:
    return bytes(value) if value is not None else b""


def _first_uint32(value: Any) -> int:
    return int.from_bytes(_plain(value)[:4], "little")


def _summary(options: Any) -> dict[str, Any]:
    attrs = dict(tuple(item)[:2] for item in options["attrs"])
    rate = attrs.get("TCA_NETEM_RATE")
    return {
        "reorder_of_2_32": _first_uint32(attrs.get("TCA_NETEM_REORDER")),
        "corrupt_of_2_32": _first_uint32(attrs.get("TCA_NETEM_CORRUPT")),
        "duplicate_of_2_32": options["duplicate"],
        "loss_model": _plain(attrs.get("TCA_NETEM_LOSS")).hex(),
        "delay_ns": int(attrs.get("TCA_NETEM_LATENCY64", options["delay"] << _TICK_SHIFT)),
        "jitter_ns": int(attrs.get("TCA_NETEM_JITTER64", options["jitter"] << _TICK_SHIFT)),
        "limit_packets": options["limit"],
        "loss_of_2_32": options["loss"],
        "rate_bytes_per_s": rate["rate"] if rate else 0,
    }


def _install_plugin(ipr: IPRoute) -> None:
    modules = ipr.tc("modules")
    stock = modules["netem"]
    if getattr(stock, "is_ztprobe", False):
        return
    (nla,) = stock.options.__bases__
    names = {
        "nla_map": _ATTRIBUTES,
        "fields": stock.options.fields,
        "netem_rate": stock.options.netem_rate,
    }
    options = type("options", (nla,), names)
    modules["netem"] = SimpleNamespace(
        is_ztprobe=True,
        parent=stock.parent,
        options=options,
        get_parameters=lambda keywords: keywords["netem_options"],
    )
