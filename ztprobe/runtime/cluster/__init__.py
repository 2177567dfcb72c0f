"""What `ztprobe deploy` applies to a cluster, made from the manifests: no cluster is needed here."""
