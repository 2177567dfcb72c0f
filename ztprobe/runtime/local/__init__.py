"""The local runtime: pods as namespaces and processes of this machine, from the cluster's manifests."""
