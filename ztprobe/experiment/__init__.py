"""What is run: an experiment's name, the request of a command, one traced run, a pair with its baseline.

`names` and `request` are what is asked for, `requirements` whether it can be, `spec` one run as a value;
`run` makes it, `pair` two of it, and `record` describes it in its directory and `failed` says
why it failed. While it goes on: `quiet` (is the machine the deployment's own), `waiting` (clients that have
not come) and `stalling` (why nothing goes on).
"""
