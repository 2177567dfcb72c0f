"""Why a round failed, stalled or was slow: causes recognised in a saved run's evidence, and ranked.

`classes` lists the causes there are, `troubles` says what went wrong before anybody asks why, and `case`
is the run as recognisers see it. One recogniser a class: `policy` (with `policy_mistakes`), `tls` (with
`refusals`, which reads handshakes record by record), `resources`, `emulation` (with `black_holes`) and
`application` (with `closes`, `deadlines`, `edges`, `unreachable`). `ranking` orders what they say
(`findings`), `diagnosis` makes data of it and `diagnosis_text` lines. `attempts` are all connections that
were tried, `names` what name servers answered; `capture` and `capture_file` do without a run, from a pcapng
of others.
"""
