"""What we have put on devices, and whether somebody else has taken it away or changed it.

What the kernel tells to have changed is read again and held against what stood there
(``ztprobe.emulation.news``). Our own changes are told alike; `Watch.renew` takes what stands after
them for what should stand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from ztprobe.emulation.changing import Place
from ztprobe.emulation.news import News
from ztprobe.emulation.savedqdisc import Links, links

__all__ = ("Standing", "Watch")

Standing = Mapping[str, str]  # what of ours stands on a device, by name: whatever tells it from another


class Watch:
    """Holds what stands at places now against what will stand there later; `close` ends it.

    :param read: what of ours stands on a link, of what it carries.
    :raises OSError: a place cannot be reached.
    """

    def __init__(self, places: Sequence[Place], read: Callable[[Links, int], Standing]) -> None:
        self._read = read
        self._places = list(places)
        self._news = News(place.netns for place in places)
        try:
            self._wanted = {place: self._standing(place) for place in places}
        except BaseException:
            self._news.close()
            raise

    def problem(self) -> str | None:
        """What is gone or different, of what has changed since the last time; None: nothing of ours."""
        changed = self._news.changed()
        for place in self._places:
            if place.netns in changed and (problem := self._compared(place)) is not None:
                return problem
        return None

    def renew(self) -> None:
        """We have changed it ourselves. What is not there any more stays missed."""
        for place in self._places:
            with contextlib.suppress(OSError):
                standing = self._standing(place)
                wanted = self._wanted[place]
                self._wanted[place] = {name: standing.get(name, was) for name, was in wanted.items()}

    def close(self) -> None:
        """Idempotent."""
        self._news.close()

    def _standing(self, place: Place) -> Standing:
        with links(place.netns) as there:
            return self._read(there, there.index(place.device))

    def _compared(self, place: Place) -> str | None:
        try:
            standing = self._standing(place)
        except OSError as error:
            return f"{place.device} of {place.pod} cannot be looked at any more: {error}"
        for name, was in self._wanted[place].items():
            if standing.get(name) != was:
                what = "changed" if name in standing else "removed"
                return f"the {name} on {place.device} of {place.pod} has been {what} by somebody else"
        return None
