"""Deployments of unmodified federated-learning frameworks, brought up for tests to watch."""
