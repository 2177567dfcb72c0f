"""Federated-learning frameworks as their logs, their events and their processes show them.

What a framework prints becomes the round events that a run keeps in rounds.jsonl (`source` has the
interface). `flower`, `nvflare` and `json_events` each read one kind of log, over what `log_source` and
`stamps` (the clock in a line) share; `log_readers` picks one, `detection` says which framework it is by
evidence, `timeouts` lists the limits that each has as it comes. Pure: files and pipes are read by whoever
traces (`ztprobe.attach.lines`), and lines arrive with the time at which they were received.
"""
