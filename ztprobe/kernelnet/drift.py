"""What we have put on devices, and whether somebody else has taken it away or changed it.

What the kernel tells to have changed is read again and held against what stood there
(``ztprobe.kernelnet.monitor``). Our own changes are told alike; `DriftMonitor.renew` takes what stands after
them for what should stand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ztprobe.kernelnet.monitor import NetlinkMonitor
from ztprobe.kernelnet.rtnetlink import Links, links

__all__ = ("DeviceState", "DriftMonitor", "PodDevice")

DeviceState = Mapping[str, str]  # what of ours stands on a device, by name: whatever tells it from another


@dataclass(frozen=True, kw_only=True)
class PodDevice:
    """A device that carries a qdisc of ours."""

    pod: str  # for messages
    netns: Path
    name: str


class DriftMonitor:
    """Holds what stands at devices now against what will stand there later; `close` ends it.

    :param read: what of ours stands on a link, of what it carries.
    :raises OSError: a device cannot be reached.
    """

    def __init__(self, devices: Sequence[PodDevice], read: Callable[[Links, int], DeviceState]) -> None:
        self._read = read
        self._devices = list(devices)
        self._monitor = NetlinkMonitor(device.netns for device in devices)
        try:
            self._wanted = {device: self._standing(device) for device in devices}
        except BaseException:
            self._monitor.close()
            raise

    def problem(self) -> str | None:
        """What is gone or different, of what has changed since the last time; None: nothing of ours."""
        changed = self._monitor.changed()
        for device in self._devices:
            if device.netns in changed and (problem := self._compared(device)) is not None:
                return problem
        return None

    def renew(self) -> None:
        """We have changed it ourselves. What is not there any more stays missed."""
        for device in self._devices:
            with contextlib.suppress(OSError):
                standing = self._standing(device)
                wanted = self._wanted[device]
                self._wanted[device] = {name: standing.get(name, was) for name, was in wanted.items()}

    def close(self) -> None:
        """Idempotent."""
        self._monitor.close()

    def _standing(self, device: PodDevice) -> DeviceState:
        with links(device.netns) as there:
            return self._read(there, there.index(device.name))

    def _compared(self, device: PodDevice) -> str | None:
        try:
            standing = self._standing(device)
        except OSError as error:
            return f"{device.name} of {device.pod} cannot be looked at any more: {error}"
        for name, was in self._wanted[device].items():
            if standing.get(name) != was:
                what = "changed" if name in standing else "removed"
                return f"the {name} on {device.name} of {device.pod} has been {what} by somebody else"
        return None
