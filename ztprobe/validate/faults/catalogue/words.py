"""Names and pieces that the catalogue's parts share."""

from __future__ import annotations

from ztprobe.validate.faults.acts import Moment
from ztprobe.validate.scenarios.plan import OTHER, SERVER, TARGET

__all__ = ("CLIENTS_POLICY", "DNS_POLICY", "OTHER", "SERVER", "SERVERS_POLICY", "TARGET", "amid_round")

CLIENTS_POLICY, SERVERS_POLICY, DNS_POLICY = "fl-client-to-server", "fl-server-from-clients", "allow-dns"


def amid_round(number: int) -> Moment:
    """When the target begins to train."""
    return Moment(TARGET, "train_start", number)
