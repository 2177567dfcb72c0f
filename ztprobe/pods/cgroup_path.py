"""The pod that a cgroup path belongs to, by kubelet's own layout and nothing that merely looks like it. Pure.

::

    /kubepods/burstable/pod<uid>/<container>                                         cgroupfs driver
    /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/...   systemd driver

Guaranteed pods lack the part that names the class. Above may stand what holds kubelet itself (kind, a
cgroup root of its own), but never a user's session: users make cgroups of any name below theirs. The
outermost pod counts. Read from a container with a cgroup namespace of its own, the upper part is
missing: ``/../../pod<uid>/...``.
"""

from __future__ import annotations

import re

__all__ = ("pod_of_path",)

_HEX = "[0-9a-f]"
_UID = (
    rf"{_HEX}{{8}}[-_]{_HEX}{{4}}[-_]{_HEX}{{4}}[-_]{_HEX}{{4}}[-_]{_HEX}{{12}}"
    rf"|{_HEX}{{32}}"  # a static pod's, from a hash of its manifest
)
_CLASS = "(?:burstable|besteffort)"
_ABOVE = "(?:[a-z0-9]+-)*"  # of the slices that the pods' slice stands in
_END = r"(?:/|$)"
_LAYOUTS = (
    re.compile(rf"/kubepods/(?:{_CLASS}/)?pod(?P<uid>{_UID}){_END}"),
    re.compile(
        rf"/(?P<above>{_ABOVE})kubepods\.slice/(?:(?P=above)kubepods-(?P<class>{_CLASS})\.slice/"
        rf"(?P=above)kubepods-(?P=class)-|(?P=above)kubepods-)pod(?P<uid>{_UID})\.slice{_END}"
    ),
    re.compile(rf"^(?:/\.\.)+/(?:{_CLASS}/)?pod(?P<uid>{_UID}){_END}"),
    re.compile(
        rf"^(?:/\.\.)+/(?:{_ABOVE}kubepods-{_CLASS}\.slice/)?"
        rf"{_ABOVE}kubepods-(?:{_CLASS}-)?pod(?P<uid>{_UID})\.slice{_END}"
    ),
)
_USERS_OWN = re.compile(r"/user(?:\.slice|-\d+\.slice|@\d+\.service)(?:/|$)")


def pod_of_path(path: str) -> str | None:
    """The pod's UID; None: it is no pod's."""
    found = [match for layout in _LAYOUTS if (match := layout.search(path)) is not None]
    outermost = min(found, key=lambda match: match.start(), default=None)
    if outermost is None or _USERS_OWN.search(path[: outermost.start() + 1]):
        return None
    return outermost["uid"].replace("_", "-")
