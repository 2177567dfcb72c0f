"""NetworkPolicies as a verdict on packets, and as an nftables table.

Kubernetes' rules (networking.k8s.io/v1): a pod that no policy selects for a
direction accepts everything in that direction; one that is selected accepts what at
least one of its policies allows, so policies only ever add up. A connection needs
both its sender's egress and its receiver's ingress. Replies belong to the
connection, which the filter leaves to connection tracking.

`compile_policies` resolves selectors and port names against the pods at hand into
plain rules on addresses; `Ruleset.allows` and `to_nft` read the same rules, so what
is explained is what is enforced. Supported: podSelector and namespaceSelector
(matchLabels, matchExpressions; namespaces are known by name alone), policyTypes, TCP
and UDP ports by number or name. Any other field is refused by name rather than
skipped, because a skipped field is another policy; and so is a port name that no
pod in question has, which would be a rule that allows nothing.
"""

from ztprobe.policy.documents import compile_policies
from ztprobe.policy.nft import NFT_TABLE, to_nft
from ztprobe.policy.rules import DIRECTIONS, PolicyPod, Rule, Ruleset, Verdict

__all__ = ("DIRECTIONS", "NFT_TABLE", "PolicyPod", "Rule", "Ruleset", "Verdict", "compile_policies", "to_nft")
