"""Names and pieces that the catalogue's parts share."""

from __future__ import annotations

from ztprobe.validate.faults.acts.act import ActMoment
from ztprobe.validate.faults.objects import EditedObjects
from ztprobe.validate.scenarios.plan import OTHER, SERVER, TARGET

__all__ = (
    "CLIENTS_POLICY",
    "DNS_POLICY",
    "EDGE",
    "OTHER",
    "SERVER",
    "SERVERS_POLICY",
    "TARGET",
    "amid_round",
    "without_startup_probes",
)

CLIENTS_POLICY, SERVERS_POLICY, DNS_POLICY = "fl-client-to-server", "fl-server-from-clients", "allow-dns"
EDGE = "fl-edge-0"  # the one before TARGET and OTHER, where there are two edges and four clients


def amid_round(number: int) -> ActMoment:
    """When the target begins to train."""
    return ActMoment(TARGET, "train_start", number)


def without_startup_probes(objects: EditedObjects) -> None:
    """Nobody waits for sidecars: a mistake that keeps them from being ready shows in the run."""
    for owner in ("fl-server", "fl-client"):
        del objects.container(owner, "proxy")["startupProbe"]
