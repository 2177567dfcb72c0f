"""Tracing what somebody else has brought up: who takes part, a run of it, and detaching without a trace.

`request` is what is asked for and `run` does it: targets (`ztprobe.pods.participants`) and `peers` are
found, `namespaces` held open, `owner_log` and `owners` tell whose each end of a connection is,
`foreign_traffic` leaves out what others send beside it, `rounds` and `lines` follow the framework's log, and
`record` writes it down. `servers` and `process_evidence` are behind ``attach --list``; `transaction` and
`leftovers` see to it that nothing stays behind.
"""
