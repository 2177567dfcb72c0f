"""The node agent: whatever touches a node (probes, emulation, leases), as one unit behind one interface."""
