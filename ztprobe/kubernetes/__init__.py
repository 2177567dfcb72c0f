"""The cluster: the one door to the API's client library, and the pods that it lists for a node."""
