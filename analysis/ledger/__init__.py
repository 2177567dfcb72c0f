"""From kernel events to a ledger that closes: messages, handshakes, critical path, components. Pure.

`ledger` puts it together, `model` is what comes out. On the way there: `roles` and `connections` (who
serves whom, over what), `timeline` (messages at every hop), `handshakes` (TCP, TLS, HTTP/2, DNS),
`critical_path` (segments with evidence), `delays`, `policy_waits` and `sub_rows` (what components consist
of). `coverage` says which rounds a loss of events touched. Deployments that others brought up have
`analysis.flows`.
"""
