"""Deployments that others brought up: who said what to whom, by which processes, and what each hop of it
cost.

    turns of connections -> messages between processes -> phases of a round -> hops -> components that close

Pure. The ledger that comes out is the same type as that of `analysis.ledger`.
"""
