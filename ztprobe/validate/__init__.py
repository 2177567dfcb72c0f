"""Injected truth: one known cost in one known place of a real run, and what the ledger makes of it.

A scenario is one run of the local runtime in which a different size of the cost is put
into every round. What is true comes from an observation of the injection itself (`observe.capture`
holds what tcpdump saw, `observe.truth` reads it; the injectors note their own times), in the
ledger's own terms, and never from a nominal timer. `scenarios` lists what is injected where
and says how, `inject` does it and `observe` watches, `comparison` lays attributed beside true,
`runner` does one scenario, `report` shows all.
"""
