"""Rounds that no application told: from the traffic alone, or named by a log and timed by it. Pure.

`round_source` decides, for whoever reads a run. `messages` and `transfers` are models and updates as the
traffic shows them, `traffic_pattern` makes rounds of their pattern, `server_side` of what the server said to
its hub; `timeouts` holds a framework's limits against what was measured.
"""
