"""Many runs as one study: their order, what is kept of them, going on after an interruption.

`plan` says what is run, `execution` runs what is missing, `run_maker` makes one of them, `attempts` keeps
those that failed. `on_cluster` refuses what a cluster cannot run, `cluster_runs` knows what may be left
there, and `at_once` has several nodes make a run each, in processes of their own (`run_process`). `pairs` is
``trace --repeat``, and `duet` makes both runs of a pair at once.
`threshold` is the bisection of ``limits``, and `limits` runs it.
"""
