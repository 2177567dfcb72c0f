"""What is run: an experiment's name, the request of a command, one traced run, a pair with its baseline.

`names` and `request` are what is asked for, `requirements` whether it can be, `spec` one run as a value;
`run` makes it, `pair` two of it, and `record` describes it in its directory. While it goes on: `quiet_check`
(is the machine the deployment's own), `missing_clients` (clients that have not come), `stall_watch` (why
nothing goes on) and `live_state` (what other commands may know of it).
"""
