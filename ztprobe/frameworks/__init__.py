"""Federated-learning frameworks as their logs, their events and their processes show them.

What a framework prints becomes the round events that a run keeps in rounds.jsonl (`source.RoundSource`).
Pure: files and pipes are read by whoever traces (`ztprobe.attach`), and lines arrive with the time at which
they were received.
"""
