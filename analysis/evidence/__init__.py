"""A run's events as the analysis sees them: read in one place, and passed on as values of its own types.

`reader` reads and `values` are what it gives; `node_clocks` brings the clocks of several nodes together;
`identity` tells connections with the same addresses and ports apart, `participants` describes a run that
was attached to, and `no_rounds` says what was there where no round was. The tables themselves are
`ztprobe.events.tables`.
"""
