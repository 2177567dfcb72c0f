"""Since when each pod is under a lease, and what it had sent by then: what ``profile status`` tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ztprobe.cli.rendering.profile import lease_dict, step_dict
from ztprobe.printable import printable_lines

if TYPE_CHECKING:
    from ztprobe.agent.interface import LeaseState
    from ztprobe.leases.following import PodSince

__all__ = ("pod_lines", "since_dict", "states_dicts")


def states_dicts(states: Sequence[LeaseState]) -> list[dict[str, Any]]:
    """Leases of one node, as the kernel has them."""
    return [
        lease_dict(one.lease) | one.counted | {"schedule": step_dict(one)} | since_dict(one) for one in states
    ]


def since_dict(state: LeaseState) -> dict[str, Any]:
    """Whether it follows its selector, and its pods one by one."""
    from ztprobe.leases.records import now_ns

    held = state.followed
    return {
        "follows": state.lease.follow is not None,
        "pods_since": [
            {
                "pod": one.pod,
                "since_s": round((now_ns() - one.since_ns) / 1e9, 3),
                "came_later": one.came_later,
                "sent_before": one.sent_before,
                "sent_after": one.sent_after,
                "gap_ms": one.gap_ms,
            }
            for one in (held.pods if held is not None else ())
        ],
        "left_out": dict(held.left_out) if held is not None else {},
        "follow_problem": held.problem if held is not None else "",
    }


def pod_lines(state: LeaseState) -> list[str]:
    """What `status` says below its table: a line for each pod."""
    from ztprobe.leases.records import now_ns, words

    held = state.followed
    if held is None:
        return []
    name = f"lease {state.lease.id}"
    lines = [
        f"{name}: {one.pod} since {words((now_ns() - one.since_ns) / 1e9)}, {_sent_words(one)}"
        for one in held.pods
    ]
    lines += [f"{name}: {pod} is not under it: {why}" for pod, why in sorted(held.left_out.items())]
    if held.problem:
        lines.append(
            f"{name}: holds for the pods known so far, and it is asked again for others: {held.problem}"
        )
    return [printable_lines(line) for line in lines]


def _sent_words(one: PodSince) -> str:
    if not one.came_later:
        sent = "" if one.sent_after is None else f" ({_packets(one.sent_after)} sent until then)"
        return f"from the lease's beginning{sent}"
    gap = "" if one.gap_ms is None else f", at most {one.gap_ms:.0f} ms after it had begun"
    if one.sent_after == 0:
        return f"before its first packet{gap}"
    if one.sent_after is None:
        return f"what it had sent by then is not known{gap}"
    before = one.sent_after if one.sent_before is None else one.sent_before
    more = f" to {one.sent_after}" if before != one.sent_after else ""
    return f"{before}{more} packets sent before{gap}"


def _packets(count: int) -> str:
    return f"{count} packet" if count == 1 else f"{count} packets"
