"""NetworkPolicies and their cluster-wide kin: verdicts with reasons, in bulk, and as an nftables table.

Documents (`manifests`, `objects`, `networkpolicies`, `clusterpolicies`) become a model (`model`), which is
compiled once (`selections`, `compiled`) and read by everything else: why a connection is allowed or
denied (`explanation`, `sides`, `remedies`, `deviations`, `simulation`), millions of verdicts (`bulk`,
`matrix`, `findings`), and the packet filter of the local runtime (`resolution`, `rules`, `nft`). So what is
explained is what is enforced.

Kubernetes' rules: a pod that no NetworkPolicy selects for a direction accepts everything in it; one that
is selected accepts what at least one of its policies allows. ClusterNetworkPolicies come before (tier
Admin) or after them (Baseline), in order of priority and of rules. A connection needs both its
sender's egress and its receiver's ingress; replies belong to the connection.

Nothing here touches a file or a node.
"""

from ztprobe.policy.model import DIRECTIONS
from ztprobe.policy.nft import NFT_TABLE, to_nft
from ztprobe.policy.resolution import compile_policies
from ztprobe.policy.rules import PolicyPod, Ruleset, Verdict

__all__ = ("DIRECTIONS", "NFT_TABLE", "PolicyPod", "Ruleset", "Verdict", "compile_policies", "to_nft")
