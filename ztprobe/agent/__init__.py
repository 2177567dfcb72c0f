"""The node agent: whatever touches a node (probes, emulation, leases), as one unit behind one interface.

`interface` is what others see of it, `node_agent` the agent itself, `remote` the same in a process of its
own (over `calls` and `lease_calls`), `service` the same on another machine; `sinks` and `spool` with
`spool_sink` are where its events go, `endpoints` who serves whom, `emulator` the profile on a node's
pods, `observed_qdiscs` what stands at their interfaces, `node_leases` and `lease_keeper` the leases and the
process behind each, `pod_counters`, `machine_load` and `cpu_account` what the kernel counts beside events,
`stalls` and `stall_snapshot` why nothing goes on, `drop_process` with `drop_feed` drops for who watches from
elsewhere, `tally` with `counts` how much it has seen, `memory` what all of it holds.
"""
