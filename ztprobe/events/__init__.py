"""The kernel's events as types and tables, derived from ``ebpf/events.h``.

A new kind of event is a struct there, which `layout` reads; its numbers get names in `kinds` (a drop's
reason comes by the running kernel's own names, `ztprobe.probes.btf`), and `tables` says what of it a run
keeps: a table with described columns, from which `documentation` writes docs/events.md. `heads` reads
packets' first bytes and `owners` is the table of runs that were attached to.
"""
