"""What `ztprobe profile apply` has put on pods, for how long, and who takes it away again.

A lease is written down before anything is changed, in ``/run/ztprobe/leases/ID/lease.json``:
the profile, the pods, every interface and rule that will be touched, what stood there
before, an owner (the process that keeps it) and an expiry. Whoever reads it can undo it
without asking anyone. Time is CLOCK_BOOTTIME: a stepped wall clock neither shortens nor
lengthens a lease, and /run ends with the boot. Where the profile has a schedule, its keeper
writes each change down beside the lease (``step.json``), and since when each pod is under it
(``following.json``).

This module only reads and writes; ``ztprobe.emulation.apply`` puts into force and lifts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztprobe import paths
from ztprobe.errors import UsageError, ZtprobeError
from ztprobe.kernelnet.rtnetlink import SavedPart, SavedQdisc
from ztprobe.leases.following import Following, FollowState, follow_state_from_dict
from ztprobe.pods.model import Pod
from ztprobe.process.identity import ProcessIdentity
from ztprobe.profile.model import Profile, profile_from_dict
from ztprobe.rundir import files, state

__all__ = (
    "Lease",
    "NodeRules",
    "Point",
    "StepInForce",
    "all_leases",
    "being_changed",
    "is_id",
    "lease_from_dict",
    "load",
    "named",
    "new_id",
    "now_ns",
    "words",
)

_FILE, _STEP_FILE, _FOLLOWING_FILE = "lease.json", "step.json", "following.json"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A device whose egress is shaped: the pod's own, the host end of its veth, or an IFB device."""

    pod: str  # namespace/name
    direction: str  # of the pod: egress | ingress
    netns: Path
    netns_inode: int
    interface: str
    saved: SavedQdisc | None = None
    ifb: str | None = None  # what comes in by the interface goes through this device, which is shaped
    made_clsact: bool = False  # for the redirect to it: the interface had none before

    @property
    def device(self) -> str:
        """The one that carries the qdisc."""
        return self.ifb or self.interface


@dataclass(frozen=True, kw_only=True)
class NodeRules:
    """A delay line's rules in the namespace that forwards between pods."""

    netns: Path
    netns_inode: int
    chain: str
    first_queue: int


@dataclass(frozen=True, kw_only=True)
class StepInForce:
    """Where a lease is in its profile's schedule, as its keeper wrote it down last."""

    number: int  # of changes since the beginning, over all repetitions
    step: int
    since_ns: int  # CLOCK_BOOTTIME
    until_ns: int | None  # None: it stays
    failed: bool = False  # it could not be put into force everywhere
    problems: int = 0  # changes that failed or came late so far
    last_problem: str | None = None


@dataclass(kw_only=True)
class Lease:
    """One `profile apply`."""

    id: str
    profile: Profile
    backend: str
    direction: str  # egress | ingress | both
    selector: str
    to: str | None
    namespace: str
    pods: tuple[Pod, ...]
    peers: tuple[Pod, ...] | None  # None: towards anyone
    points: tuple[Point, ...]
    rules: tuple[NodeRules, ...]
    owner: ProcessIdentity
    created_ns: int  # CLOCK_BOOTTIME
    expires_ns: int
    state: str = "applying"  # then: in force | undelayed (its delay line died)
    follow: Following | None = None  # None: it holds for these pods and no others
    why_not_followed: str = ""  # though it was asked for

    @property
    def directory(self) -> Path:
        """Its place on disk; the delay line keeps its files there too."""
        return paths.STATE_DIR / paths.LEASES / self.id

    @property
    def remaining_s(self) -> float:
        """Until it ends; negative: it should have."""
        return (self.expires_ns - now_ns()) / 1e9

    @property
    def directions(self) -> tuple[str, ...]:
        """egress, ingress, or both."""
        return ("egress", "ingress") if self.direction == "both" else (self.direction,)

    @property
    def runtime(self) -> str:
        """local | kubernetes; of a lease that has no pods at the moment, too."""
        if self.follow is not None:
            return self.follow.runtime
        return self.pods[0].runtime if self.pods else "kubernetes"

    @property
    def peer_addresses(self) -> tuple[str, ...] | None:
        """IPv4; None: anyone."""
        return None if self.peers is None else tuple(peer.address for peer in self.peers)

    @property
    def abandoned(self) -> str | None:
        """Why nobody will end it in time, e.g. its keeper was killed; None: all is well."""
        if not self.owner.alive:
            return "its keeper died"
        if self.remaining_s < -_GRACE_S:
            return "it has expired"
        return None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it; the way back is `lease_from_dict`."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self), default=str)))

    def write(self) -> None:
        """Write it down, whole or not at all. :raises ZtprobeError: the state directory refuses."""
        text = json.dumps(self.as_dict(), indent=1)
        try:
            with contextlib.suppress(FileExistsError):
                if not self.directory.exists():
                    state.make(paths.LEASES, self.id)
            self._replace(_FILE, text)
        except OSError as error:
            raise ZtprobeError(f"{self.directory} cannot be written: {error.strerror}") from error

    def write_step(self, held: StepInForce) -> None:
        """Write down where the schedule is; what cannot be written only `status` would have shown."""
        with contextlib.suppress(OSError):
            self._replace(_STEP_FILE, json.dumps(dataclasses.asdict(held)))

    def step_in_force(self) -> StepInForce | None:
        """Where the schedule is; None: there is none, or nothing is in force yet."""
        try:
            return StepInForce(**json.loads((self.directory / _STEP_FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write_following(self, held: FollowState) -> None:
        """Write down since when pods are under it; what cannot be written only `status` would have shown."""
        with contextlib.suppress(OSError):
            self._replace(_FOLLOWING_FILE, json.dumps(dataclasses.asdict(held)))

    def followed(self) -> FollowState | None:
        """Since when pods are under it; None: nothing is in force yet."""
        try:
            return follow_state_from_dict(json.loads((self.directory / _FOLLOWING_FILE).read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def profile_now(self) -> Profile:
        """What is in force now: the profile, or the step of its schedule."""
        held = self.step_in_force()
        return self.profile.steps[0 if held is None else held.step]

    def _replace(self, name: str, text: str) -> None:
        files.write_whole(self.directory / name, text.encode(), mode=0o600)

    def remove(self) -> None:
        """Forget it, and the directory of leases with the last one. Idempotent."""
        files.remove_tree(self.directory)
        with contextlib.suppress(OSError):
            self.directory.parent.rmdir()
            state.leave()


_GRACE_S = 3.0  # a keeper reverts within a fraction of a second


@contextlib.contextmanager
def being_changed() -> Iterator[None]:
    """Nobody else takes a pod for a lease during the body; there is a lease already.

    :raises OSError: there is none any more.
    """
    directory = os.open(paths.STATE_DIR / paths.LEASES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def now_ns() -> int:
    """CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def new_id() -> str:
    """Six hexadecimal digits."""
    return secrets.token_hex(3)


def is_id(text: str) -> bool:
    """Whether that may be what `new_id` gives."""
    return re.fullmatch("[0-9a-f]{6}", text) is not None


def all_leases() -> list[Lease]:
    """Every lease that is written down, oldest first; unreadable ones are skipped."""
    found = []
    for path in (paths.STATE_DIR / paths.LEASES).glob(f"*/{_FILE}"):
        try:
            found.append(lease_from_dict(json.loads(path.read_text())))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda lease: lease.created_ns)


def named(leases: Sequence[Lease], ids: Sequence[str]) -> list[Lease]:
    """Those of these names, or all where none is given.

    :raises UsageError: there is no lease of such a name.
    """
    found = {lease.id: lease for lease in leases}
    if unknown := [one for one in ids if one not in found]:
        there = f"there are {', '.join(found)}" if found else "there are none"
        raise UsageError(f"no lease {unknown[0]}: {there}")
    return [found[one] for one in ids] or list(leases)


def load(lease_id: str) -> Lease:
    """One lease. :raises (OSError, ValueError, KeyError, TypeError): it cannot be read."""
    return lease_from_dict(json.loads((paths.STATE_DIR / paths.LEASES / lease_id / _FILE).read_text()))


def words(seconds: float) -> str:
    """A duration for people: ``9m58s``."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def lease_from_dict(data: Mapping[str, Any]) -> Lease:
    """:raises (KeyError, TypeError): not what `Lease.as_dict` gives."""
    values = dict(data)
    values["profile"] = profile_from_dict(values["profile"])
    values["owner"] = ProcessIdentity(**values["owner"])
    values["pods"] = tuple(Pod.from_dict(pod) for pod in values["pods"])
    if values["peers"] is not None:
        values["peers"] = tuple(Pod.from_dict(pod) for pod in values["peers"])
    values["points"] = tuple(_point(point) for point in values["points"])
    values["rules"] = tuple(NodeRules(**r | {"netns": Path(r["netns"])}) for r in values["rules"])
    if values.get("follow") is not None:
        values["follow"] = Following.from_dict(values["follow"])
    return Lease(**values)


def _point(data: Mapping[str, Any]) -> Point:
    saved = data["saved"]
    if saved:
        parts = tuple(SavedPart(**part) for part in saved["parts"])
        saved = SavedQdisc(**saved | {"parts": parts})
    return Point(**{**data, "netns": Path(data["netns"]), "saved": saved})
