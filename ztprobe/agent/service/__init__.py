"""The agent behind gRPC: a collector on another machine uses it as if it were its own.

``wire`` is what both sides know, ``server`` with ``session`` the agent's side, ``client`` the collector's;
``drop_streams`` and ``drop_client`` are the two sides of drops that are watched without a session.
"""
