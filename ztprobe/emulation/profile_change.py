"""Another condition on pods where a profile is in force already, with nothing taken away.

The kernel's qdiscs get other options where they stand (RTM_NEWQDISC without NLM_F_CREATE, so
that one that somebody removed is not silently made again) and keep what they hold; the delay
line gets them through its standard input. What was set is read back and compared, as when it
was put there. Structures never change: they were chosen by `Profile.widest`, so a bucket is
there from the beginning if any step has a rate, and the queue's limit is that of the largest.

One pod costs an entry into its namespace, a request and a dump on one socket: about 0.1 ms.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ztprobe.emulation.delay_line.node import NodeQueue
from ztprobe.emulation.netem import netem_change_options, netem_summary
from ztprobe.emulation.tbf import tbf_options, tbf_summary
from ztprobe.errors import EnforcementError
from ztprobe.kernelnet.drift import PodDevice
from ztprobe.kernelnet.rtnetlink import Links, SavedQdisc, links
from ztprobe.profile.model import Profile

__all__ = ("change",)

_OURS = range(0x5A70, 0x5A80)  # major numbers of our qdiscs' handles


def change(
    step: Profile, backend: str, devices: Sequence[PodDevice], queues: Sequence[NodeQueue]
) -> tuple[int, int]:
    """Put a step's values into force everywhere and read them back.

    A device that refuses does not keep the others from changing.

    :param step: of the profile that the devices and queues carry (`Profile.steps`).
    :returns: CLOCK_MONOTONIC in nanoseconds before the first change, and when all were confirmed.
    :raises EnforcementError: a device is gone, was altered by somebody else, or holds other values.
    """
    from_ns = time.monotonic_ns()
    problems = []
    if devices:
        kind = "netem" if backend == "netem" else "tbf"
        options = netem_change_options(step) if kind == "netem" else tbf_options(step)
        for device in devices:
            try:
                with links(device.netns) as there:
                    _change_one(there, device, kind, options)
            except (OSError, EnforcementError) as error:
                problems.append(
                    str(error) if isinstance(error, EnforcementError) else f"{device.pod}: {error}"
                )
    for queue in queues:
        try:
            queue.change(step)
        except EnforcementError as error:
            problems.append(str(error))
    at_ns = time.monotonic_ns()
    if problems:
        more = f" (and {len(problems) - 1} more like it)" if problems[1:] else ""
        raise EnforcementError(f"{problems[0]}{more}")
    return from_ns, at_ns


def _change_one(there: Links, device: PodDevice, kind: str, options: bytes) -> None:
    index = there.index(device.name)
    parent, qdisc = _find(there, index, device, kind)
    # Even where it looks the same already: the kernel never shows which table netem has.
    there.change(index, parent, qdisc, options)
    _, changed = _find(there, index, device, kind)
    wanted, got = _summary(kind, options), _summary(kind, bytes.fromhex(changed.options_hex))
    if got != wanted:
        raise EnforcementError(f"{device.pod}: {kind} was changed to {wanted} and read back as {got}")


def _find(there: Links, index: int, device: PodDevice, kind: str) -> tuple[int, SavedQdisc]:
    # The deepest one of this kind: what stands above it classifies or segments.
    found = [item for item in there.qdiscs(index) if item[1].kind == kind and _is_ours(item[1].handle)]
    if not found:
        raise EnforcementError(f"{device.pod}: the {kind} on {device.name} has been removed by somebody else")
    return max(found, key=lambda item: item[1].handle)


def _is_ours(handle: int) -> bool:
    return handle >> 16 in _OURS


def _summary(kind: str, options: bytes) -> dict[str, object]:
    return dict(netem_summary(options) if kind == "netem" else tbf_summary(options))
