"""Pods that run: what is known of one, how its namespace and interface are found, what a selector means."""
