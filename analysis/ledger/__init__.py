"""From kernel events to a ledger that closes: messages, handshakes, critical path, components. Pure."""
