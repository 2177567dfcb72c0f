"""Many runs as one study: their order, what is kept of them, going on after an interruption.

`plan` says what is run, `execution` runs what is missing, `run_maker` makes one of them, `on_cluster` refuses
what a cluster cannot run, and `cluster_runs` knows what may be left there. `pairs` is ``trace --repeat``.
`threshold` is the bisection of ``limits``, and `limits` runs it.
"""
