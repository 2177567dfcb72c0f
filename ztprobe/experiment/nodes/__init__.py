"""A run whose pods are on several nodes, watched through their agents.

`agent` is all of the agents as one, `path` what pods of different nodes get of a profile, `watching` what the
job sees a run by; `accounts` and `tables` put together what the nodes saw, of deployments of others too.
"""
