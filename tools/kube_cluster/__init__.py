"""A Kubernetes cluster of one node on this machine, for tests: real programs, real pods.

The node is a network namespace, a mount namespace and a cgroup of its own, and one directory in the cache:
/run, /var/lib and /var/log are its own. Process ids are the machine's, as an agent needs them. So ending
every process in the cgroup ends the node: its mounts, links and rules go with the last of them.
"""
