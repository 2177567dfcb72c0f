"""An experiment and the agent on a cluster.

`experiment`, `agent` and `rewriting` make what `ztprobe deploy` applies from the manifests, `traced` the
pods that `ztprobe trace` applies instead of Jobs; all of them without a cluster. `runtime` brings such a run
up and down, with `place` (where it was asked for), `run_pods` and `pod_states` (what the API tells), `gate`,
`source` and `kept_logs` (what is found on the node) and `proof`.
"""
