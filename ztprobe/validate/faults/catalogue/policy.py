"""NetworkPolicies that are not what they should be: edited objects, compiled as any others."""

from __future__ import annotations

from ztprobe.validate.faults.catalogue.words import CLIENTS_POLICY, DNS_POLICY
from ztprobe.validate.faults.model import Fault, Variant
from ztprobe.validate.faults.objects import Edit, Objects

__all__ = ("FAULTS",)

_DNS_DROPPED = r"policy dropped fl-client-\d -> kube-dns udp/53: \d"
_PORT_DROPPED = r"policy dropped fl-client-\d -> fl-server tcp/50051: \d"


def _without(*names: str) -> Edit:
    def edit(objects: Objects) -> None:
        for name in names:
            objects.remove("NetworkPolicy", name)

    return edit


def _dns_ports(*protocols: str) -> Edit:
    def edit(objects: Objects) -> None:
        (rule,) = objects.policy(DNS_POLICY)["egress"]
        rule["ports"] = [{"protocol": protocol, "port": 53} for protocol in protocols]

    return edit


FAULTS = (
    Fault(
        cause="policy.dns_blocked_udp",
        variants=(
            Variant(what="DNS is allowed over TCP only", level=1, edit=_dns_ports("TCP"), shows=_DNS_DROPPED),
        ),
    ),
    Fault(
        cause="policy.default_deny",
        variants=(
            Variant(
                what="clients have no rule but for DNS",
                level=1,
                edit=_without(CLIENTS_POLICY),
                shows=_PORT_DROPPED,
            ),
        ),
    ),
)
