"""A link's clsact qdisc, which the probes and a redirect to an IFB device share with anyone else.

It is only a place for filters, and there is one a link. Whoever needs it uses the one that is
there, adds filters of its own, takes those away again, and removes the qdisc only if it was made
by us and nobody's filters are left in it. The older ``ingress`` qdisc is the same place without
its egress half.
"""

from __future__ import annotations

from typing import Any

from ztprobe.kernelnet.netlink import IPRoute

__all__ = (
    "EGRESS",
    "INGRESS",
    "add_clsact",
    "filters",
    "has_clsact",
    "has_named",
    "remove_if_empty",
    "remove_named",
)

INGRESS, EGRESS = 0xFFFF_FFF2, 0xFFFF_FFF3
_PARENT = 0xFFFF_FFF1


def has_clsact(ipr: IPRoute, index: int) -> bool:
    """Whether link ``index`` has one, or an ingress qdisc, made by whomever."""
    return any(
        message["index"] == index and message["parent"] == _PARENT for message in ipr.tc("dump", index=index)
    )


def add_clsact(ipr: IPRoute, index: int) -> bool:
    """Make sure that there is one; says whether this call made it."""
    if has_clsact(ipr, index):
        return False
    # tc qdisc add dev IFACE clsact
    ipr.tc("add", "clsact", index=index)
    return True


def filters(ipr: IPRoute, index: int, parent: int) -> list[Any]:
    """Every filter below ``parent`` (`INGRESS` or `EGRESS`), as pyroute2 has it."""
    return list(ipr.get_filters(index=index, parent=parent))


def has_named(ipr: IPRoute, index: int, parent: int, name: str) -> bool:
    """Whether a bpf filter of that name is below ``parent``."""
    return bool(_named(ipr, index, parent, name))


def remove_named(ipr: IPRoute, index: int, parent: int, name: str) -> None:
    """Remove the bpf filters of that name; others at the same priority stay."""
    for message in _named(ipr, index, parent, name):
        # tc filter del dev IFACE ingress handle H prio N bpf
        ipr.tc("del-filter", "bpf", index, message["handle"], parent=parent, info=message["info"])


def remove_if_empty(ipr: IPRoute, index: int) -> None:
    """Remove a clsact qdisc that nobody's filter is in; leaves any other. Idempotent."""
    if not has_clsact(ipr, index) or any(filters(ipr, index, parent) for parent in (INGRESS, EGRESS)):
        return
    # tc qdisc del dev IFACE clsact
    ipr.tc("del", "clsact", index=index)


def _named(ipr: IPRoute, index: int, parent: int, name: str) -> list[Any]:
    found = []
    for message in filters(ipr, index, parent):
        options = message.get_attr("TCA_OPTIONS")
        if message.get_attr("TCA_KIND") == "bpf" and options and options.get_attr("TCA_BPF_NAME") == name:
            found.append(message)
    return found
