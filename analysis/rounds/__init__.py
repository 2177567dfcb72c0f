"""Rounds that no application told: from the traffic alone, or named by a log and timed by it. Pure.

`settled` decides, for whoever reads a run. `messages` and `seen` are models and updates as the traffic
shows them, `inferred` makes rounds of their pattern, `server_side` of what the server said to its hub;
`timeouts` holds a framework's limits against what was measured.
"""
