"""A deployment on a cluster, seen through the agents of its nodes, from anywhere and without root.

`request` is what is asked for, `pods` what the API tells of the deployment, `node` one node with its agent,
`observation` all of them as one run that goes on, `record` run.json, and `transaction` the run directory.
"""
