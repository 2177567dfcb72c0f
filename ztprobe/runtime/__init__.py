"""Where pods run: network namespaces of this machine (`local`); Kubernetes will be the other."""
