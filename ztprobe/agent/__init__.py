"""The node agent: whatever touches a node (probes, emulation, leases), as one unit behind one interface.

`interface` is what others see of it, `node_agent` the agent itself, `remote` the same in a process of its
own, `sinks` where its events go, `endpoints` who serves whom, `emulator` the profile on a node's pods,
`lease_keeper` the process behind each lease, `memory` what all of it holds.
"""
