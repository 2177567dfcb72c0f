"""Where a deployment is brought up: `interface` is what the job knows of it, `deployments` chooses.

`local` runs pods in network namespaces of this machine; `cluster` makes what `ztprobe deploy` applies.
"""
