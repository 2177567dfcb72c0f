"""What one `ztprobe trace --attach` is asked to do, checked before anything is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ztprobe.durations import duration_s
from ztprobe.errors import UsageError
from ztprobe.experiment.request import STALL_AFTER_S
from ztprobe.frameworks.log_readers import FRAMEWORKS
from ztprobe.kubernetes.access import ClusterAccess
from ztprobe.pods.targets import Role, Target, parse_target

__all__ = ("POD_LOG", "AttachRequest", "make_request")

POD_LOG = "pod"  # for --events-from: what the server's pod writes


@dataclass(frozen=True, kw_only=True)
class AttachRequest:
    """One trace of what runs already; every field has been checked."""

    targets: tuple[Target, ...]
    out: Path  # absolute; does not exist yet or is empty
    for_s: float | None = None  # how long; None: until Ctrl-C, the rounds or the server's end
    rounds: int | None = None  # how many ends of rounds
    framework: str = "auto"
    events_from: str | None = None  # a file, "-", POD_LOG; None: rounds are told from the traffic
    stall_after_s: float = STALL_AFTER_S  # without progress
    must_tell: bool = True  # what is read has to be a log that tells of rounds; else it may
    cluster: ClusterAccess | None = None

    @property
    def names_clients(self) -> bool:
        """Whether somebody has said who the clients are; otherwise they are the server's peers."""
        return any(target.role == "client" for target in self.targets)

    @property
    def server(self) -> Target:
        """The server's."""
        return next(target for target in self.targets if target.role == "server")


def make_request(
    *,
    server: str | None,
    clients: Sequence[str],
    hubs: Sequence[str],
    out: Path,
    for_text: str | None = None,
    rounds: int | None = None,
    framework: str = "auto",
    events_from: str | None = None,
    stall_after_s: float = STALL_AFTER_S,
    cluster: ClusterAccess | None = None,
) -> AttachRequest:
    """Check what was typed. :raises UsageError: something of it cannot be meant."""
    if server is None:
        raise UsageError("--attach needs --server, a TARGET such as pid:4711: see `ztprobe attach --list`")
    typed: list[tuple[str, Role]] = [(server, "server")]
    typed += [(text, "hub") for text in hubs] + [(text, "client") for text in clients]
    if framework not in ("auto", *FRAMEWORKS):
        raise UsageError(f"--framework {framework}: expected one of auto, {', '.join(FRAMEWORKS)}")
    texts = [text for text, _ in typed]
    if twice := next((text for text in texts if texts.count(text) > 1), None):
        raise UsageError(f"{twice} is named twice: a participant has one role")
    targets = tuple(parse_target(text, role) for text, role in typed)
    has_log = cluster is not None and targets[0].kind == "pods"
    if events_from == POD_LOG and not has_log:
        raise UsageError(
            f"--events-from {POD_LOG}: --server is no pod of a cluster; expected a file, a pipe, - or none"
        )
    must_tell = events_from is not None
    if events_from is None and has_log:
        events_from = POD_LOG
    return AttachRequest(
        targets=targets,
        out=out,
        for_s=None if for_text is None else duration_s("--for", for_text),
        rounds=rounds,
        framework=framework,
        events_from=None if events_from in (None, "none") else events_from,
        stall_after_s=stall_after_s,
        must_tell=must_tell,
        cluster=cluster,
    )
