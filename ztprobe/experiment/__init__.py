"""What is run: an experiment's name, the request of a command, one traced run, a pair with its baseline.

`names` and `request` are what is asked for, `requirements` whether it can be, `spec` one run as a value;
`run` makes it, `pair` two of it, `record` describes it in its directory and `failure` says why it failed.
While it goes on: `quiet_check` (is the machine the deployment's own), `missing_clients` (clients that have
not come), `topology` (who serves whom), `level_switch` (another security level meanwhile), `followers` (who
ends with somebody), `stall_watch` (why nothing goes on) and `live_state` (what other commands may know of
it).
"""
