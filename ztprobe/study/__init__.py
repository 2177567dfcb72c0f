"""Many runs as one study: their order, what is kept of them, going on after an interruption.

`plan` says what is run and `execution` runs what is missing; `pairs` is ``trace --repeat``. `threshold` is
the bisection of ``limits``, and `limits` runs it.
"""
