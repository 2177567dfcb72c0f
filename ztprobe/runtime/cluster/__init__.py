"""An experiment and the agent on a cluster.

`experiment`, `agent` and `rewriting` make what `ztprobe deploy` applies from the manifests, `traced` the
pods that `ztprobe trace` applies instead of Jobs; all of them without a cluster. `runtime` brings such a run
up and down: `place` is where it was asked for, `refusals` what is not to be had there, `run_objects` what it
has applied, `run_pods` and `pod_states` what the API tells of its pods, `run_state` what that means, `gate`
and `gate_keeper` hold and open its pods, `source` and `kept_logs` find processes and logs on the node, and
`level_proof` with `proof`, `hardening` and `run_certificates` shows that its level is in force.
"""
